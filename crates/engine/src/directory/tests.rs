use super::*;
use crate::limits::MISS_KEPT;
use crate::port::{Changes, Versioned};
use async_trait::async_trait;
use pannier_core::ids::SiteName;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A registry in memory that can be switched off.
#[derive(Default)]
pub(crate) struct Memory {
    state: Mutex<(u64, BTreeMap<String, Versioned>)>,
    away: AtomicBool,
    /// How often it was listed.
    lists: AtomicU32,
    changed: tokio::sync::Notify,
}

impl Memory {
    pub(crate) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    fn check(&self) -> Result<()> {
        if self.away.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "switched off"));
        }
        Ok(())
    }
}

#[async_trait]
impl Registry for Memory {
    async fn get(&self, key: &str) -> Result<Option<Versioned>> {
        self.check()?;
        Ok(self.state.lock().1.get(key).cloned())
    }

    async fn list(&self, prefix: &str) -> Result<(Vec<(String, Versioned)>, Revision)> {
        self.check()?;
        self.lists.fetch_add(1, Ordering::SeqCst);
        // As with a real one, others may ask meanwhile.
        tokio::task::yield_now().await;
        let state = self.state.lock();
        let found = state.1.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok((found.map(|(k, v)| (k.clone(), v.clone())).collect(), Revision(state.0)))
    }

    async fn commit(&self, transaction: Transaction) -> Result<Commit> {
        self.check()?;
        // As with a real one, others may come between what was read and this.
        tokio::task::yield_now().await;
        let mut state = self.state.lock();
        let holds = transaction.expect.iter().all(|(key, revision)| {
            state.1.get(key).map_or(Revision(0), |value| value.revision) == *revision
        });
        if !holds {
            return Ok(Commit::Conflict);
        }
        state.0 += 1;
        let revision = Revision(state.0);
        for KeyChange { key, value } in transaction.changes {
            match value {
                Some(value) => drop(state.1.insert(key, Versioned { revision, value })),
                None => drop(state.1.remove(&key)),
            }
        }
        self.changed.notify_waiters();
        Ok(Commit::Done(revision))
    }

    async fn changes(&self, after: Revision) -> Result<Changes> {
        loop {
            let changed = self.changed.notified();
            self.check()?;
            let (entries, through) = self.list("").await?;
            if through > after || after == Revision(0) {
                let entries = entries.into_iter().map(|(key, value)| (key, Some(value))).collect();
                return Ok(Changes { entries, through, complete: true });
            }
            drop(tokio::time::timeout(Duration::from_millis(50), changed).await);
        }
    }
}

fn volume(path: &str, id: u128) -> VolumeRecord {
    VolumeRecord::new(VolumeId(id), VolumePath::parse(path).unwrap(), 4096, HostId(1))
}

async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come to hold within 5 s");
}

#[tokio::test]
async fn a_path_is_taken_once_and_free_after_delete() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path(), Arc::new(Memory::default()), "boot");
    directory.create_volume(&volume("/a", 1)).await.unwrap();
    let error = directory.create_volume(&volume("/a", 2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.context().contains("already a volume `/a`"), "{error}");

    let refused = directory
        .delete_volume(VolumeId(1), |_| Err(Error::new(ErrorKind::Unavailable, "in use")))
        .await
        .unwrap_err();
    assert_eq!(refused.context(), "in use");
    directory.delete_volume(VolumeId(1), |_| Ok(())).await.unwrap();
    assert!(directory.volume(VolumeId(1)).is_none());
    assert!(directory.deleted(VolumeId(1)).is_some());
    directory.create_volume(&volume("/a", 2)).await.unwrap();
    let path = VolumePath::parse("a").unwrap();
    assert_eq!(directory.volume_at(&path).unwrap().record.id, VolumeId(2));
}

#[tokio::test]
async fn updates_of_two_hosts_are_both_there() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Memory::default());
    let one = Arc::new(Directory::open(dir.path(), registry.clone(), "boot"));
    let two = Arc::new(Directory::open(dir.path(), registry, "boot"));
    one.create_volume(&volume("/a", 1)).await.unwrap();
    let tasks: Vec<_> = [one.clone(), two]
        .into_iter()
        .map(|directory| {
            tokio::spawn(async move {
                for _ in 0..100 {
                    directory
                        .update_volume(VolumeId(1), |record| {
                            record.size_bytes += 4096;
                            Ok(())
                        })
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let record = one.fresh_volume(VolumeId(1)).await.unwrap().record;
    assert_eq!(record.size_bytes, 4096 * 201);
    assert_eq!(
        one.grow_volume(VolumeId(1), 4096).await.unwrap_err().kind(),
        ErrorKind::Invalid,
        "no shrinking"
    );
}

#[tokio::test]
async fn the_copy_serves_while_the_registry_is_away_and_changes_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Memory::default());
    let directory = Arc::new(Directory::open(dir.path(), registry.clone(), "boot"));
    directory.create_volume(&volume("/a", 1)).await.unwrap();
    let stop = CancellationToken::new();
    let watch = tokio::spawn(directory.clone().watch(stop.clone()));
    until(|| directory.revision() == Revision(1)).await;
    stop.cancel();
    watch.await.unwrap();

    registry.set_away(true);
    for (boot, seen) in [("boot", true), ("next boot", false)] {
        let later = Directory::open(dir.path(), registry.clone(), boot);
        let path = VolumePath::parse("/a").unwrap();
        assert_eq!(later.find(&path).await.unwrap().record.id, VolumeId(1));
        assert_eq!(later.seen_in_this_boot(VolumeId(1)), seen);
        let error = later.create_volume(&volume("/b", 2)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.context().contains("repeat the command"), "{error}");
        assert!(!later.reachable());
    }
}

#[tokio::test]
async fn a_copy_from_before_a_reboot_stays_one_until_all_of_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Memory::default());
    let before = Arc::new(Directory::open(dir.path(), registry.clone(), "boot"));
    before.create_volume(&volume("/a", 1)).await.unwrap();
    before.create_volume(&volume("/b", 2)).await.unwrap();
    let run = |directory: Arc<Directory>, through| async move {
        let stop = CancellationToken::new();
        let watch = tokio::spawn(directory.clone().watch(stop.clone()));
        until(|| directory.revision() == Revision(through)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        stop.cancel();
        watch.await.unwrap();
    };
    run(before, 2).await;

    // The first daemon after the reboot reads one record; its watch never gets an answer.
    let first = Arc::new(Directory::open(dir.path(), registry.clone(), "next boot"));
    first.fresh_volume(VolumeId(1)).await.unwrap();
    assert!(!first.seen_in_this_boot(VolumeId(2)));
    registry.set_away(true);
    run(first, 2).await;
    let second = Arc::new(Directory::open(dir.path(), registry.clone(), "next boot"));
    for id in [VolumeId(1), VolumeId(2)] {
        assert!(second.volume(id).is_some());
        assert!(!second.seen_in_this_boot(id), "{id} is a memory from before the reboot");
    }

    registry.set_away(false);
    second.create_volume(&volume("/c", 3)).await.unwrap();
    let seen = second.clone();
    let all = async { until(|| seen.seen_in_this_boot(VolumeId(2))).await };
    tokio::join!(run(second, 3), all);
    let third = Directory::open(dir.path(), registry, "next boot");
    assert!(third.seen_in_this_boot(VolumeId(2)));
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_for_what_does_not_exist_shares_one_look() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Memory::default());
    let directory = Directory::open(dir.path(), registry.clone(), "boot");
    let lists = || registry.lists.load(Ordering::SeqCst);
    for looks in 1..=3 {
        for _ in 0..2 {
            let asks = (0..50).map(|number| {
                let directory = &directory;
                async move {
                    let path = VolumePath::parse(&format!("/none/{number}")).unwrap();
                    let found = directory.find(&path).await.map(|_| ());
                    let exists = directory.check_exists(VolumeId(number)).await;
                    [found, exists].map(|told| told.unwrap_err().kind())
                }
            });
            for told in futures::future::join_all(asks).await {
                assert_eq!(told, [ErrorKind::NotFound; 2]);
            }
            assert_eq!(lists(), looks, "the registry was asked by each");
        }
        tokio::time::sleep(MISS_KEPT).await;
    }
    let elsewhere = Directory::open(dir.path(), registry.clone(), "boot");
    elsewhere.create_volume(&volume("/none/7", 7)).await.unwrap();
    let path = VolumePath::parse("/none/7").unwrap();
    assert_eq!(directory.find(&path).await.unwrap().record.id, VolumeId(7));
}

#[tokio::test]
async fn a_watch_hears_of_others_and_finds_a_registry_that_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Memory::default());
    let here = Arc::new(Directory::open(dir.path(), registry.clone(), "boot"));
    let elsewhere_dir = tempfile::tempdir().unwrap();
    let elsewhere = Directory::open(elsewhere_dir.path(), registry.clone(), "boot");
    let stop = CancellationToken::new();
    registry.set_away(true);
    let mut news = here.subscribe();
    let watch = tokio::spawn(here.clone().watch(stop.clone()));
    tokio::time::sleep(Duration::from_millis(20)).await;
    registry.set_away(false);
    elsewhere.create_volume(&volume("/a", 7)).await.unwrap();
    assert_eq!(news.recv().await.unwrap(), News::Volume(VolumeId(7)));
    elsewhere.delete_volume(VolumeId(7), |_| Ok(())).await.unwrap();
    until(|| here.volume(VolumeId(7)).is_none() && here.deleted(VolumeId(7)).is_some()).await;
    stop.cancel();
    watch.await.unwrap();
}

#[tokio::test]
async fn a_host_brings_its_site_and_names_are_unique() {
    let dir = tempfile::tempdir().unwrap();
    let directory = Directory::open(dir.path(), Arc::new(Memory::default()), "boot");
    let host = |id, name: &str| HostRecord {
        id: HostId(id),
        name: name.into(),
        site: SiteName("west".into()),
        address: "192.0.2.1:7".into(),
    };
    directory.put_host(&host(1, "a")).await.unwrap();
    directory.put_host(&host(1, "a")).await.unwrap();
    assert_eq!(directory.sites().len(), 1);
    let error = directory.put_host(&host(2, "a")).await.unwrap_err();
    assert!(error.context().contains("taken by host"), "{error}");
    // A new name frees the old one.
    directory.put_host(&host(1, "b")).await.unwrap();
    directory.put_host(&host(2, "a")).await.unwrap();
}

#[tokio::test]
async fn of_hosts_that_join_at_once_with_one_name_one_gets_it() {
    let registry = Arc::new(Memory::default());
    let joins = (1..=8).map(|id| {
        let registry = registry.clone();
        async move {
            let dir = tempfile::tempdir().unwrap();
            let directory = Directory::open(dir.path(), registry, "boot");
            let host = HostRecord {
                id: HostId(id),
                name: "a".into(),
                site: SiteName("west".into()),
                address: "192.0.2.1:7".into(),
            };
            directory.put_host(&host).await
        }
    });
    let joined = futures::future::join_all(joins).await;
    assert_eq!(joined.iter().filter(|joined| joined.is_ok()).count(), 1, "{joined:?}");
}
