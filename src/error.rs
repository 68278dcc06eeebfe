//! One error type, and one exhaustive match to errno.

use std::fmt;
use std::io;

/// What can go wrong. Cheap to clone: an error is told to everyone whose batch it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// A stream of this name exists, or the index a guarded batch was promised is taken.
    Exists,
    /// No such stream, or an index beyond the end.
    NotFound,
    /// The stream holds events.
    NotEmpty,
    /// Streams are only ever appended to.
    NotPermitted,
    /// A name no stream can have, or a write where it makes no sense.
    Invalid,
    /// An event that was dropped.
    Dropped,
    /// A name that leads to another file by now.
    Stale,
    /// The store was opened for reading only, or is on a file system that became so.
    ReadOnly,
    /// More spilled batches at once than there are descriptors for.
    TooManyBatches,
    /// A checksum that does not hold, or data that is missing.
    Damaged {
        /// The stream.
        stream: String,
        /// The first event affected.
        index: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The stream takes no appends.
    Stopped {
        /// The stream.
        stream: String,
        /// Why.
        why: &'static str,
    },
    /// A commit that failed after its log was written: it may have happened, compare `at/N`.
    Unknown {
        /// The stream.
        stream: String,
        /// What failed.
        why: String,
    },
    /// There is nothing to read yet, and the reader does not want to wait.
    Again,
    /// The reader has a signal to attend to.
    Interrupted,
    /// A fault in smolstore itself.
    Fault,
    /// A directory that is not a store.
    Foreign(String),
    /// The operating system said no.
    Os {
        /// Its errno.
        errno: i32,
        /// What was asked for, with the path.
        what: String,
    },
}

/// The result of everything that can fail here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What a system call answers.
    pub fn errno(&self) -> i32 {
        match self {
            Error::Exists => libc::EEXIST,
            Error::NotFound => libc::ENOENT,
            Error::NotEmpty => libc::ENOTEMPTY,
            Error::NotPermitted => libc::EPERM,
            Error::Invalid | Error::Foreign(_) => libc::EINVAL,
            Error::Dropped => libc::ENODATA,
            Error::Stale => libc::ESTALE,
            Error::ReadOnly => libc::EROFS,
            Error::TooManyBatches => libc::ENFILE,
            Error::Again => libc::EAGAIN,
            Error::Interrupted => libc::EINTR,
            Error::Damaged { .. }
            | Error::Stopped { .. }
            | Error::Fault
            | Error::Unknown { .. } => libc::EIO,
            // Those that mean something else here, or nothing to a user, are EIO.
            Error::Os { errno, .. } => match *errno {
                libc::EINTR | libc::EAGAIN | libc::EEXIST | libc::EINVAL | libc::EBADF => libc::EIO,
                libc::EMSGSIZE | libc::EFAULT | libc::ENOSYS | 0 => libc::EIO,
                // As if it were this mount that is dead.
                libc::ENOTCONN | libc::ECONNABORTED | libc::ESHUTDOWN | libc::ESTALE => libc::EIO,
                errno => errno,
            },
        }
    }

    /// The disk is full, or a quota.
    pub(crate) fn no_room(&self) -> bool {
        matches!(self, Error::Os { errno, .. } if [libc::ENOSPC, libc::EDQUOT].contains(errno))
    }

    /// Adds what was asked for to an answer of the operating system.
    pub fn os(what: impl fmt::Display) -> impl FnOnce(io::Error) -> Error {
        move |error| Error::Os {
            // Only a short read or write has none: the file ended, or took nothing.
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            what: what.to_string(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Exists => f.write_str("it exists already"),
            Error::NotFound => f.write_str("there is no such stream or event"),
            Error::NotEmpty => f.write_str("the stream holds events"),
            Error::NotPermitted => f.write_str("streams are only ever appended to"),
            Error::Invalid => f.write_str("not a name for a stream, or not a place to write"),
            Error::Dropped => f.write_str("this event was dropped"),
            Error::Stale => f.write_str("events were dropped: it is another file"),
            Error::ReadOnly => f.write_str("the store can only be read"),
            Error::TooManyBatches => f.write_str("too many large batches are being written"),
            Error::Damaged { stream, index, what } => {
                write!(f, "stream {stream:?}, event {index}: {what}")
            }
            Error::Stopped { stream, why } => {
                write!(f, "stream {stream:?} takes no appends: {why}")
            }
            Error::Unknown { stream, why } => {
                write!(f, "stream {stream:?}: a commit may have happened or not: {why}")
            }
            Error::Again => f.write_str("there is nothing more yet"),
            Error::Interrupted => f.write_str("interrupted by a signal"),
            Error::Fault => f.write_str("a fault in smolstore: please report it"),
            Error::Foreign(why) => f.write_str(why),
            Error::Os { errno, what } => {
                write!(f, "{what}: {}", io::Error::from_raw_os_error(*errno))
            }
        }
    }
}

impl std::error::Error for Error {}
