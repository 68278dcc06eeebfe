use super::*;
use crate::page::HEADER;
use prop::collection::vec;
use prop::sample::Index;
use proptest::prelude::*;

const SEED: u64 = 7;
/// To the end of the page.
const FULL: u64 = PAGE;

type Recovered = Result<(Found<&'static str>, Vec<(u64, u64)>), &'static str>;

/// A log in memory, whose blocks hold one event each, and one page of which cannot be read.
#[derive(Clone, Debug)]
struct Log {
    bytes: Vec<u8>,
    tip: Tip,
    unreadable: Option<u64>,
}

impl Pages for Log {
    type Error = &'static str;

    fn page(&mut self, at: u64) -> Result<&[u8], &'static str> {
        if self.unreadable == Some(at / PAGE) {
            return Err("unreadable");
        }
        let end = self.bytes.len().min((at - at % PAGE + PAGE) as usize);
        Ok(self.bytes.get(at as usize..end).unwrap_or_default())
    }

    fn end(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl Log {
    fn new() -> Log {
        let head = Head { seed: SEED, ..Head::default() };
        Log { bytes: head.encode().to_vec(), tip: Tip::default(), unreadable: None }
    }

    /// A commit with blocks of so many bytes each, if their pages have them: where they begin.
    fn commit(&mut self, lens: &[u64]) -> Vec<u64> {
        let (mut places, time) = (Vec::new(), self.tip.time + 1);
        for (n, len) in lens.iter().enumerate() {
            let first = if n == 0 { FIRST } else { 0 };
            let last = if n + 1 == lens.len() { LAST } else { 0 };
            let Tip { end, crc: prev, count: index, view, .. } = self.tip;
            let at = page::place(end);
            let len = (*len).min(PAGE - at % PAGE - HEADER as u64) as u16;
            let flags = first | last;
            let mut block = Block { at, len, flags, crc: 0, prev, events: 1, index, time, view };
            let end = self.bytes.len().max(block.end() as usize);
            self.bytes.resize(end, 0);
            let bytes = &mut self.bytes[at as usize..block.end() as usize];
            bytes[HEADER..].fill(b'x');
            bytes[bytes.len() - 1] = b'\n';
            block.seal(SEED, bytes);
            self.tip = Tip::from(&block);
            places.push(at);
        }
        places
    }

    /// One that does not come to its end: the blocks but for the last are there.
    fn attempt(&mut self, lens: &[u64]) {
        let before = self.tip;
        let places = self.commit(lens);
        self.bytes.truncate(places[places.len() - 1] as usize);
        self.tip = before;
    }

    fn drop_before(&mut self, first: u64, at: u64, view: u64) {
        let head = Head { seed: SEED, first, at, view };
        self.bytes[..HEAD].copy_from_slice(&head.encode());
    }

    fn damage(&mut self, at: u64) {
        self.bytes[at as usize + 9] ^= 1;
    }

    /// With what the index says; what there is, and what of it is damaged: from event to event.
    fn found(&mut self, last: u64) -> (Found<&'static str>, Vec<(u64, u64)>) {
        self.recovered((last, SEED), Tip::default()).unwrap()
    }

    fn recovered(&mut self, index: (u64, u64), known: Tip) -> Recovered {
        let (mut head, mut gaps) = ([0; HEAD], Vec::new());
        head.copy_from_slice(&self.bytes[..HEAD]);
        let evidence = Evidence { head, index, known };
        let found = recover(self, &evidence, &mut |gap| gaps.push((gap.first, gap.next)))?;
        Ok((found, gaps))
    }
}

#[test]
fn a_log_without_a_head_has_no_events_unless_somebody_knows_better() {
    let mut log = Log { bytes: vec![0; 5000], ..Log::new() };
    let (found, _) = log.found(0);
    assert_eq!((found.head, found.tip, found.lost), (Head::default(), Tip::default(), None));
    assert!(log.found(40).0.lost.is_some());
    let known = Tip { at: 40, ..Tip::default() };
    assert!(log.recovered((0, 0), known).unwrap().0.lost.is_some());
}

#[test]
fn the_last_commit_is_to_be_written_again_when_it_is_not_known_to_be_durable() {
    let mut log = Log::new();
    let places = [log.commit(&[10]), log.commit(&[10, FULL, FULL]), log.commit(&[5])].concat();
    for (last, start) in [(0, Some(places[4])), (places[3], Some(places[4])), (places[4], None)] {
        let (found, gaps) = log.found(last);
        let expected = (log.tip, start, None, vec![]);
        assert_eq!((found.tip, found.start, found.lost, gaps), expected);
        // The index of another log says nothing; what this process knows says as much.
        let (found, _) = log.recovered((last, 1), Tip::default()).unwrap();
        assert_eq!((found.tip, found.start, found.lost), (log.tip, Some(places[4]), None));
        let (found, _) = log.recovered((last, 1), log.tip).unwrap();
        assert_eq!((found.tip, found.start, found.lost), (log.tip, None, None));
    }
    // No commit ends with its first block.
    assert_eq!(log.found(places[1]).0.lost, Some(BLOCK));
}

#[test]
fn what_is_left_of_an_older_attempt_fits_no_chain() {
    let mut log = Log::new();
    let mut last = log.commit(&[10])[0];
    log.attempt(&[FULL; 9]);
    for len in [FULL, 10, FULL, FULL, 4000, 10, FULL] {
        assert_eq!(log.found(last).0.tip, log.tip);
        assert_eq!(log.found(0), log.found(0));
        assert_eq!(log.found(0).1, []);
        last = log.commit(&[len])[0];
    }
}

#[test]
fn damage_before_a_commit_costs_the_block_it_is_in() {
    let mut log = Log::new();
    let first = log.commit(&[900, 900, FULL, FULL, 10]);
    let second = log.commit(&[10, FULL, 10]);
    log.damage(first[1]);
    // With `last` nothing before it is looked at.
    assert_eq!(log.found(second[2]).1, []);
    let (found, gaps) = log.found(0);
    let expected = (log.tip, Some(second[0]), None, vec![(1, 2)]);
    assert_eq!((found.tip, found.start, found.lost, gaps), expected);
    // A block that does not begin a commit proves nothing.
    log.damage(second[0]);
    let (found, gaps) = log.found(0);
    let expected = (Tip::default(), None, None, vec![]);
    assert_eq!((found.tip, found.start, found.lost, gaps), expected);
}

#[test]
fn a_commit_that_is_not_whole_proves_what_is_before_it() {
    let mut log = Log::new();
    let places = log.commit(&[FULL, FULL]);
    log.attempt(&[10, 10]);
    log.damage(places[0]);
    let (found, gaps) = log.found(0);
    // What is left of the last whole commit is written again.
    let expected = (log.tip, Some(places[1]), None, vec![(0, 1)]);
    assert_eq!((found.tip, found.start, found.lost, gaps), expected);
    // The first thing behind the damage may be its first block: the end is before that.
    let mut log = Log::new();
    let place = log.commit(&[FULL])[0];
    log.attempt(&[FULL, 10]);
    log.damage(place);
    let (found, gaps) = log.found(0);
    let expected = (Tip { at: 0, ..log.tip }, None, None, vec![(0, 1)]);
    assert_eq!((found.tip, found.start, found.lost, gaps), expected);
}

#[test]
fn what_was_dropped_is_no_part_of_a_stream_that_is_lost() {
    let mut log = Log::new();
    let places = [log.commit(&[10]), log.commit(&[10]), log.commit(&[10])].concat();
    log.damage(places[2]);
    // All but the last event, or all of them; the blocks before are still there.
    for (first, view) in [(2, 20), (3, 30)] {
        log.drop_before(first, places[2], view);
        let (found, _) = log.found(places[2]);
        assert_eq!((found.lost, found.tip.count, found.tip.view), (Some(BLOCK), first, view));
    }
}

#[test]
fn a_damaged_end_is_lost_and_what_is_before_it_intact() {
    let mut log = Log::new();
    let places = [log.commit(&[10]), log.commit(&[FULL, FULL, 10])].concat();
    for at in &places[1..] {
        let mut log = log.clone();
        log.damage(*at);
        // Without `last` it is a commit that did not come to its end.
        let (found, _) = log.found(0);
        assert_eq!((found.lost, found.tip.count), (None, 1));
        let (found, _) = log.found(places[3]);
        let (lost, count) = if at == &places[3] { (Some(BLOCK), 3) } else { (None, 4) };
        assert_eq!((found.lost, found.tip.count), (lost, count));
    }
    // A log that is shorter than `last` says.
    log.bytes.truncate(places[2] as usize);
    let (found, _) = log.found(places[3]);
    assert_eq!((found.lost, found.tip.count), (Some(BLOCK), 2));
}

#[test]
fn without_its_head_a_log_can_be_read() {
    let mut log = Log::new();
    let places = log.commit(&[10, 10]);
    // One byte is mended, else it is the index that knows the seed.
    for (damaged, seed) in [(1, 1), (30, SEED)] {
        let mut log = log.clone();
        log.bytes[..damaged].fill(0xee);
        let (found, _) = log.recovered((places[1], seed), Tip::default()).unwrap();
        assert_eq!((found.lost.is_some(), found.tip, found.head.seed), (true, log.tip, SEED));
    }
}

#[test]
fn what_was_dropped_was_acknowledged() {
    let mut log = Log::new();
    let places = [log.commit(&[10, 900, FULL]), log.commit(&[FULL]), log.commit(&[10])].concat();
    // The first event kept is in the middle of a commit.
    log.drop_before(1, places[1], 10);
    assert_eq!((log.found(0).0.tip, log.found(0).0.from.at), (log.tip, places[1]));
    log.damage(places[1]);
    let (found, gaps) = log.found(0);
    let expected = (log.tip, Some(places[4]), None, vec![(1, 2)]);
    assert_eq!((found.tip, found.start, found.lost, gaps), expected);
    // Nothing says that anything was acknowledged but the head.
    log.bytes.truncate(places[2] as usize);
    assert_eq!(log.found(0).0.lost, Some(BLOCK));
}

#[test]
fn what_follows_a_damaged_block_all_of_which_was_dropped_is_found() {
    let mut log = Log::new();
    let at = log.commit(&[FULL])[0];
    let Tip { count, view, .. } = log.tip;
    log.drop_before(count, at, view);
    let next = log.commit(&[10])[0];
    log.damage(at);
    let (found, gaps) = log.found(0);
    // No event that is kept is damaged.
    let expected = (log.tip, Some(next), None, vec![]);
    assert_eq!((found.tip, found.start, found.lost, gaps), expected);
}

#[test]
fn what_cannot_be_read_is_damage_where_more_is_known_to_be() {
    let mut log = Log::new();
    let places = [log.commit(&[FULL]), log.commit(&[FULL]), log.commit(&[FULL])].concat();
    log.unreadable = Some(1);
    let (found, gaps) = log.found(places[0]);
    assert_eq!((found.tip, gaps), (log.tip, vec![(1, 2)]));
    // It may be there the next time.
    let (found, _) = log.found(places[1]);
    assert_eq!((found.lost, found.failed), (None, Some("unreadable")));
    log.bytes.truncate(places[2] as usize);
    let (found, _) = log.found(places[0]);
    assert_eq!((found.tip.at, found.lost, found.failed), (places[0], None, Some("unreadable")));
}

#[test]
fn a_block_follows_only_where_all_of_it_fits() {
    let [whole, inside] = [true, false].map(|whole| Tip {
        at: 40,
        end: 100,
        crc: 7,
        count: 3,
        view: 20,
        time: 50,
        whole,
    });
    let next = |flags, time| Block {
        at: 100,
        len: 1,
        flags,
        prev: 7,
        index: 3,
        view: 20,
        time,
        ..Block::default()
    };
    let (first, rest) = (next(FIRST, 51), next(LAST, 50));
    assert!(whole.leads_to(&first) && inside.leads_to(&rest));
    // A commit begins with a first block, later than the one before, and shares one time.
    for other in [rest, next(FIRST, 50), next(FIRST, 49), next(0, 51)] {
        assert!(!whole.leads_to(&other), "{other:?}");
    }
    for other in [first, next(LAST, 51), next(LAST, 49), next(FIRST, 50)] {
        assert!(!inside.leads_to(&other), "{other:?}");
    }
    for (tip, fits) in [(whole, first), (inside, rest)] {
        for other in [
            Block { prev: 8, ..fits },
            Block { index: 4, ..fits },
            Block { index: 2, ..fits },
            Block { view: 21, ..fits },
            Block { prev: 8, index: 4, ..fits },
        ] {
            assert!(!tip.leads_to(&other), "{other:?}");
        }
    }
}

proptest! {
    /// Bytes of a log at other places, over others or gone: no walk fails, or goes on for ever.
    #[test]
    fn any_log_is_walked_to_its_end(
        commits in vec(vec(1..1500u64, 1..5), 0..8),
        copies in vec((any::<Index>(), any::<Index>(), 0..5000usize), 0..4),
        bytes in vec((any::<Index>(), any::<u8>()), 0..4),
        cut: Index, last: Index, far: u64, at: Index, seed in 0..9u64,
    ) {
        let mut log = Log::new();
        let mut places = vec![0, far, log.bytes.len() as u64];
        commits.iter().for_each(|lens| places.extend(log.commit(lens)));
        let head = Head { seed: SEED, first: 1, at: places[at.index(places.len())], view: 9 };
        log.bytes[..HEAD].copy_from_slice(&head.encode());
        for (from, to, len) in copies {
            let from = from.index(log.bytes.len());
            let piece = log.bytes[from..log.bytes.len().min(from + len)].to_vec();
            let to = to.index(log.bytes.len() + 1);
            log.bytes.resize(log.bytes.len().max(to + piece.len()), 0);
            log.bytes[to..to + piece.len()].copy_from_slice(&piece);
        }
        for (at, byte) in bytes {
            let at = at.index(log.bytes.len());
            log.bytes[at] = byte;
        }
        let len = HEAD + cut.index(2 * log.bytes.len());
        log.bytes.truncate(len);
        log.bytes.resize(log.bytes.len().max(HEAD), 0);
        let index = (places[last.index(places.len())], seed);
        let (found, gaps) = log.recovered(index, Tip::default()).unwrap();
        prop_assert!(gaps.iter().all(|(first, next)| first <= next));
        prop_assert!(found.tip.end <= log.end().max(HEAD as u64));
        prop_assert!(found.start.is_none_or(|start| start < found.tip.end));
        prop_assert!(found.lost.is_some() || found.tip.whole);
    }
}
