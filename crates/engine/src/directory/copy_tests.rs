use super::*;
use crate::directory::codec::encode_record;

fn site(name: &str, revision: u64) -> (String, Option<Versioned>) {
    let record = SiteRecord { name: SiteName(name.into()) };
    let value = encode_record(&record).unwrap();
    (format!("site/{name}"), Some(Versioned { revision: Revision(revision), value }))
}

fn names(copy: &Copy) -> Vec<&str> {
    copy.sites.keys().map(|name| name.0.as_str()).collect()
}

fn changes(entries: Vec<(String, Option<Versioned>)>, through: u64, complete: bool) -> Changes {
    Changes { entries, through: Revision(through), complete }
}

#[test]
fn changes_apply_in_order_and_stale_ones_do_not() {
    let mut copy = Copy::default();
    assert_eq!(copy.apply(&changes(vec![site("west", 1), site("east", 2)], 2, false)).len(), 2);
    assert_eq!(names(&copy), ["east", "west"]);
    assert!(copy.apply(&changes(vec![site("east", 2)], 2, false)).is_empty(), "nothing is new");

    // Our own delete at 5, then a report that was on its way since before it.
    copy.committed("site/east", Revision(5), None);
    copy.apply(&changes(vec![site("east", 2)], 4, false));
    assert_eq!(names(&copy), ["west"]);
    // Our own create at 7, then a report of the delete before it.
    let (key, value) = site("east", 7);
    copy.committed(&key, Revision(7), value.map(|value| value.value));
    copy.apply(&changes(vec![("site/east".into(), None)], 6, false));
    assert_eq!(names(&copy), ["east", "west"]);
    assert_eq!(copy.through(), Revision(6));
}

#[test]
fn a_complete_report_drops_what_it_lacks() {
    let mut copy = Copy::default();
    copy.apply(&changes(vec![site("west", 1), site("east", 2)], 2, false));
    assert_eq!(copy.apply(&changes(vec![site("west", 1)], 9, true)), ["site/east"]);
    assert_eq!(names(&copy), ["west"]);
}

/// A report, or the read of one key, that was made before a deletion and arrives behind its news.
#[test]
fn what_arrives_late_brings_nothing_back() {
    let mut copy = Copy::default();
    copy.apply(&changes(vec![site("west", 1), site("east", 2)], 2, true));
    let whole = changes(vec![site("west", 1), site("east", 2)], 3, true);
    for gone in [vec![("site/east".into(), None)], vec![]] {
        let complete = gone.is_empty();
        let news = if complete { vec![site("west", 1)] } else { gone };
        copy.apply(&changes(news, 5, complete));
        assert_eq!(names(&copy), ["west"]);
        assert!(copy.apply(&whole).is_empty(), "a late report has no news");
        let (key, value) = site("east", 2);
        assert!(copy.committed(&key, Revision(2), value.map(|value| value.value)).is_empty());
        assert_eq!(names(&copy), ["west"]);
        assert_eq!(copy.through(), Revision(5), "what was seen stays seen");
    }
    // Made anew, it is there, and a report from before that does not take it away.
    copy.apply(&changes(vec![site("east", 7)], 7, false));
    copy.apply(&changes(vec![site("west", 1)], 6, true));
    assert_eq!(names(&copy), ["east", "west"]);
}

#[test]
fn the_file_survives_and_damage_is_noticed() {
    let mut copy = Copy::default();
    copy.apply(&changes(vec![site("west", 1), site("east", 2)], 3, false));
    let bytes = copy.encode("boot").unwrap();
    let (back, boot) = Copy::decode(&bytes).unwrap();
    assert_eq!((names(&back), back.through(), boot.as_str()), (names(&copy), Revision(3), "boot"));
    for cut in [0, 1, 15, 16, bytes.len() - 1] {
        assert!(Copy::decode(&bytes[..cut]).is_none(), "cut at {cut}");
    }
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x40;
        assert!(Copy::decode(&bad).is_none(), "flipped byte {at}");
    }
}
