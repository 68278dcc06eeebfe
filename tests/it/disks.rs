//! Real disks, on loop devices and with real daemons: what is there after a crash, where there is no
//! room, where a sector is bad.
//!
//! Longer runs: `SMOLSTORE_KILLS=200 SMOLSTORE_IMAGES=50 SMOLSTORE_ROUNDS=20 cargo test --release
//! --test it -- --nocapture disks::`

mod crash;
mod device;
mod dropping;
mod failing;
mod full;
mod machine;
mod sectors;
mod writers;
