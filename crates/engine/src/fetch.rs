//! Fetching what is not resident: one flight per page, demand first, every answer checked.
//!
//! What to ask for and when is [`pannier_core::movement::Planner`]'s; here it is asked: the own
//! site's store first, then, in rounds, the peers that may hold the pages and the store again, each
//! answer checked by the segment's block table before it counts. Pages are lost only when all of
//! these could be asked, for a while, and none had a good copy.

mod room;
mod stored;

use crate::context::Fetch;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{PageRun, Request, Response};
use crate::mover::{Mover, Room, frames, limits};
use crate::port::Class;
use crate::serve::unpack;
use crate::volume::Volume;
use crate::volume::log::{PageRuns, pages_in};
use async_trait::async_trait;
use bytes::Bytes;
use pannier_core::format::segment::SegmentMeta;
use pannier_core::format::segment::limits::META_BYTES_READ_MAX;
use pannier_core::ids::{HostId, SegmentId, SegmentName, VolumeId};
use pannier_core::movement::{self, Ask, Outcome, Planner, Token};
use pannier_core::units::{BLOCK_BYTES, PageIndex, Time};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use stored::Stored;
use tokio::sync::{Notify, OnceCell, oneshot};
use tokio::time::Instant;

/// Fetches for all volumes of a host.
pub struct Fetcher {
    mover: Weak<Mover>,
    plan: Mutex<Plan>,
    /// Told when bulk wants can be taken again.
    drained: Notify,
    stored: Stored,
    metas: Mutex<HashMap<SegmentId, Arc<OnceCell<Bytes>>>>,
    /// Set while what arrives has no place on this host's disk: until then nothing is asked for but
    /// what guests wait for.
    full_until: Mutex<Option<Instant>>,
    /// Whether somebody waits for room.
    waits_for_room: AtomicBool,
    started: Instant,
}

#[derive(Default)]
struct Plan {
    planner: Planner<SegmentId>,
    waiting: HashMap<Token, oneshot::Sender<Outcome>>,
}

/// Forgets a want when its waiter goes away.
struct Waiter<'a> {
    fetcher: &'a Fetcher,
    token: Token,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut plan = self.fetcher.plan.lock();
        if plan.waiting.remove(&self.token).is_some() {
            plan.planner.cancel(self.token);
        }
    }
}

fn planned(class: Class) -> movement::Class {
    match class {
        Class::Bulk => movement::Class::Bulk,
        Class::RunAhead => movement::Class::RunAhead,
        Class::Demand | Class::Control => movement::Class::Demand,
    }
}

fn asked(class: movement::Class) -> Class {
    match class {
        movement::Class::Bulk => Class::Bulk,
        movement::Class::RunAhead => Class::RunAhead,
        movement::Class::Demand => Class::Demand,
    }
}

/// Whether a failure says that the source has no good copy; any other may pass, and then the source
/// may have one.
fn answered(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::Corrupt => true,
        ErrorKind::Unavailable
        | ErrorKind::Fenced
        | ErrorKind::Invalid
        | ErrorKind::NoSpace
        | ErrorKind::Closed
        | ErrorKind::Internal => {
            tracing::debug!(%error, "the site's store is away");
            false
        }
    }
}

/// How a round over all sources ended.
enum Hunt {
    /// Everything is here.
    Complete,
    /// This is still missing; whether every source was reached.
    Missing(PageRuns, bool),
    /// This is still missing, and this host has no space for it: no source can help.
    Full(PageRuns),
}

impl Fetcher {
    pub(crate) fn new(mover: Weak<Mover>) -> Self {
        Self {
            mover,
            plan: Mutex::default(),
            drained: Notify::new(),
            stored: Stored::default(),
            metas: Mutex::default(),
            full_until: Mutex::default(),
            waits_for_room: AtomicBool::new(false),
            started: Instant::now(),
        }
    }

    /// Makes pages of a sealed segment resident. Waits as long as a copy can come back.
    ///
    /// # Errors
    /// `Corrupt` when no good copy exists, `Closed` when the host shuts down.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the wish; what is in flight becomes resident all the same.
    pub async fn fetch(
        &self,
        volume: &Arc<Volume>,
        segment: SegmentName,
        runs: &[Range<u32>],
        class: Class,
    ) -> Result<()> {
        if self.take_stored(volume, segment, runs, class).await {
            return Ok(());
        }
        let mover = self.mover()?;
        let room = mover.room(volume.id());
        if class == Class::Demand {
            room.demand_fetches.fetch_add(1, Ordering::Relaxed);
        }
        let id = SegmentId { volume: volume.id(), name: segment };
        let (sender, receiver) = oneshot::channel();
        let token = {
            let mut plan = self.plan.lock();
            // The caller looked before the lock was held: what it missed may have arrived since.
            // From here on it is resident, in flight, or to be asked for: a flight ends only after
            // its pages have become resident.
            let absent = volume.absent_pages(segment, runs);
            let token = plan.planner.want(id, &absent, planned(class));
            plan.waiting.insert(token, sender);
            token
        };
        let _waiter = Waiter { fetcher: self, token };
        self.pump(&mover);
        match receiver.await {
            Ok(Outcome::Arrived) => Ok(()),
            Ok(Outcome::Failed) => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "segment {id}: no host or store that can be reached has a good copy of some \
                     of its pages; bring back the hosts that held it, or restore the volume"
                ),
            )),
            Err(_gone) => Err(mover.closing("fetching")),
        }
    }

    /// Waits until background work may want more.
    pub(crate) async fn bulk_ready(&self) {
        loop {
            let drained = self.drained.notified();
            if !self.plan.lock().planner.bulk_full() {
                return;
            }
            drained.await;
        }
    }

    fn mover(&self) -> Result<Arc<Mover>> {
        self.mover
            .upgrade()
            .filter(|mover| !mover.closed.is_cancelled())
            .ok_or_else(|| Error::new(ErrorKind::Closed, "this host shuts down"))
    }

    fn now(&self) -> Time {
        Time(self.started.elapsed().as_nanos() as u64)
    }

    /// Takes pages from the own site's store, when it has them all, and they are good.
    async fn take_stored(
        &self,
        volume: &Arc<Volume>,
        segment: SegmentName,
        runs: &[Range<u32>],
        class: Class,
    ) -> bool {
        if class != Class::Demand && self.full_until().is_some_and(|until| until > Instant::now()) {
            return false;
        }
        let Some(key) = volume.stored_key(segment) else { return false };
        let done = self.stored.pages(volume, segment, &key, runs, class).await;
        match &done {
            Ok(refused) => self.note_taken(volume, refused.as_ref()),
            Err(error) if error.kind() == ErrorKind::NoSpace => self.note_full(volume, error),
            Err(error) => tracing::warn!(
                volume = %volume.id(), %segment, %error,
                "the site's store did not give pages that it should have; asking peers"
            ),
        }
        done.is_ok()
    }

    /// Sends what may be sent, and tells those whose wants have ended.
    fn pump(&self, mover: &Arc<Mover>) {
        let mut asks = Vec::new();
        {
            let mut plan = self.plan.lock();
            while let Some(ask) = plan.planner.poll_ask(self.now()) {
                asks.push(ask);
            }
            while let Some((token, outcome)) = plan.planner.poll_done() {
                if let Some(waiting) = plan.waiting.remove(&token) {
                    // A waiter that has just gone needs no answer.
                    waiting.send(outcome).ok();
                }
            }
            if !plan.planner.bulk_full() {
                self.drained.notify_waiters();
            }
        }
        for ask in asks {
            let mover = mover.clone();
            // Detached: bounded by the planner, and it ends with the host.
            drop(tokio::spawn(async move {
                let closed = mover.closed.clone();
                let fetcher = mover.fetcher.clone();
                tokio::select! {
                    () = fetcher.execute(&mover, ask) => fetcher.pump(&mover),
                    () = closed.cancelled() => fetcher.plan.lock().waiting.clear(),
                }
            }));
        }
    }

    /// Carries a request to whichever source has the pages, until they are here.
    async fn execute(&self, mover: &Arc<Mover>, ask: Ask<SegmentId>) {
        let mut missing = ask.runs.clone();
        let mut pause = limits::SOURCE_RETRY_FIRST;
        let mut reached_since: Option<Instant> = None;
        loop {
            let reached = match self.hunt(mover, &ask, missing).await {
                Hunt::Complete => {
                    self.plan.lock().planner.answered(ask.id, &ask.runs, self.now());
                    return;
                }
                Hunt::Missing(rest, reached) => {
                    missing = rest;
                    reached
                }
                Hunt::Full(rest) => {
                    // The rest waits in the queue, where demand finds it.
                    let kept = frames::without(&ask.runs, &rest);
                    self.plan.lock().planner.answered(ask.id, &kept, self.now());
                    return;
                }
            };
            reached_since = if reached { reached_since.or(Some(Instant::now())) } else { None };
            if reached_since.is_some_and(|since| since.elapsed() > limits::LOST_AFTER) {
                tracing::error!(
                    segment = %ask.key, pages = ?missing,
                    "no good copy of these pages exists on any host"
                );
                self.plan.lock().planner.failed(ask.id);
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(limits::SOURCE_RETRY_MAX);
        }
    }

    /// Asks every source once for what is still missing.
    async fn hunt(&self, mover: &Arc<Mover>, ask: &Ask<SegmentId>, wanted: PageRuns) -> Hunt {
        let segment = ask.key;
        let Ok(volume) = mover.local(segment.volume) else {
            return Hunt::Missing(wanted, false);
        };
        let room = mover.room(segment.volume);
        let (mut missing, mut reached) = (wanted, true);
        for source in sources(mover, segment.volume) {
            get_meta_beside(&volume, segment.name);
            let answer = match self.ask(mover, &room, source, ask, &missing).await {
                Ok((got, bytes)) if !got.is_empty() => {
                    let class = asked(ask.class);
                    match volume.take_pages(segment.name, &got, &bytes, class).await {
                        Ok(refused) => {
                            self.note_taken(&volume, refused.as_ref());
                            Ok(got)
                        }
                        Err(error) if error.kind() == ErrorKind::NoSpace => {
                            self.note_full(&volume, &error);
                            return Hunt::Full(missing);
                        }
                        Err(error) => Err(error),
                    }
                }
                answer => answer.map(|(got, _none)| got),
            };
            match answer {
                Ok(got) => missing = frames::without(&missing, &got),
                Err(error) => match error.kind() {
                    ErrorKind::NotFound => {}
                    ErrorKind::Corrupt => tracing::warn!(
                        %segment, %source, %error, "a peer gave bad pages; asking another"
                    ),
                    _ => {
                        reached = false;
                        tracing::debug!(%segment, %source, %error, "a source is away");
                    }
                },
            }
            if missing.is_empty() {
                return Hunt::Complete;
            }
        }
        // Behind the peers: it has just failed once, and may take long to fail again.
        let class = asked(ask.class);
        for key in volume.objects_of(segment.name) {
            match self.stored.pages(&volume, segment.name, &key, &missing, class).await {
                Ok(refused) => {
                    self.note_taken(&volume, refused.as_ref());
                    return Hunt::Complete;
                }
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    self.note_full(&volume, &error);
                    return Hunt::Full(missing);
                }
                Err(error) => reached &= answered(&error),
            }
        }
        Hunt::Missing(missing, reached)
    }

    /// Asks one source; what it answers is not checked against the block table yet.
    async fn ask(
        &self,
        mover: &Arc<Mover>,
        room: &Room,
        source: HostId,
        ask: &Ask<SegmentId>,
        wanted: &PageRuns,
    ) -> Result<(PageRuns, Vec<u8>)> {
        let (segment, class) = (ask.key, asked(ask.class));
        let run =
            |run: &Range<u32>| PageRun { first: PageIndex(run.start), count: run.end - run.start };
        let runs = wanted.iter().map(run).collect();
        let request = Request::Pages { segment, runs };
        let answer = mover.peers.call(source, class, request, Bytes::new()).await;
        let (response, payload) = match answer {
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                let lost = u64::from(pages_in(wanted)) * BLOCK_BYTES;
                room.resent_bytes.fetch_add(lost, Ordering::Relaxed);
                return Err(error);
            }
            answer => answer?,
        };
        let Response::Pages { frames, incomplete: _ } = response else {
            let context = format!("host {source} answered a request for pages with something else");
            return Err(Error::new(ErrorKind::Corrupt, context));
        };
        room.wire_bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
        // The link is free for the next request while this answer is checked and kept.
        self.plan.lock().planner.received(ask.id, self.now());
        self.pump(mover);
        let wanted = wanted.clone();
        let decoded =
            tokio::task::spawn_blocking(move || frames::decode(&wanted, &frames, &payload));
        decoded.await.map_err(|_ended| mover.closing("fetching"))?
    }
}

/// Gets what a segment's pages are checked with while they are under way, not after they have come:
/// a guest's first read of a segment then waits for one round trip.
fn get_meta_beside(volume: &Arc<Volume>, segment: SegmentName) {
    let Ok(known) = volume.known(segment) else { return };
    let volume = volume.clone();
    // Detached: one flight per segment, which whoever checks the pages joins.
    drop(tokio::spawn(async move {
        if let Err(error) = volume.meta_of(&known).await {
            tracing::debug!(volume = %volume.id(), segment = %known.name, %error, "no metadata");
        }
    }));
}

/// The hosts that may hold a volume's segments: its owner, the giver or taker of a transit, then
/// all others.
fn sources(mover: &Mover, volume: VolumeId) -> Vec<HostId> {
    let mut sources = Vec::new();
    if let Some(found) = mover.directory.volume(volume) {
        let record = found.record;
        sources.push(record.owner);
        sources.extend(record.transit.iter().flat_map(|transit| [transit.from, transit.to]));
    }
    sources.extend(mover.directory.hosts().into_iter().map(|host| host.id));
    let mut seen = std::collections::HashSet::from([mover.host()]);
    sources.retain(|source| seen.insert(*source));
    sources
}

#[async_trait]
impl Fetch for Fetcher {
    async fn pages(
        &self,
        volume: &Arc<Volume>,
        segment: SegmentName,
        pages: PageRuns,
        class: Class,
    ) -> Result<()> {
        self.fetch(volume, segment, &pages, class).await
    }

    async fn meta(&self, volume: VolumeId, segment: SegmentName) -> Result<Bytes> {
        let mover = self.mover()?;
        let id = SegmentId { volume, name: segment };
        // One flight per segment: who waited gets what the first has got.
        let flight = self.metas.lock().entry(id).or_default().clone();
        let found = flight.get_or_try_init(|| self.find_meta(&mover, id)).await.cloned();
        self.metas.lock().remove(&id);
        found
    }
}

impl Fetcher {
    async fn find_meta(&self, mover: &Arc<Mover>, id: SegmentId) -> Result<Bytes> {
        let own = mover.local(id.volume).ok().and_then(|volume| volume.stored_key(id.name));
        match self.meta_from_own_store(mover, id, own).await {
            Ok(Some(meta)) => Ok(meta),
            Ok(None) => self.hunt_meta(mover, id).await,
            Err(error) => {
                tracing::warn!(
                    segment = %id, %error,
                    "the site's store did not give metadata that it should have; asking peers"
                );
                self.hunt_meta(mover, id).await
            }
        }
    }

    /// The metadata within the segment's stored form; `None` when the own site does not have it.
    async fn meta_from_own_store(
        &self,
        mover: &Mover,
        segment: SegmentId,
        key: Option<String>,
    ) -> Result<Option<Bytes>> {
        let (Ok(volume), Some(key)) = (mover.local(segment.volume), key) else { return Ok(None) };
        self.stored.meta(&volume, &key).await.map(Some)
    }

    async fn hunt_meta(&self, mover: &Arc<Mover>, segment: SegmentId) -> Result<Bytes> {
        let mut pause = limits::SOURCE_RETRY_FIRST;
        let mut reached_since: Option<Instant> = None;
        loop {
            let mut reached = true;
            for source in sources(mover, segment.volume) {
                match self.ask_meta(mover, source, segment).await {
                    Ok(meta) => return Ok(meta),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        tracing::warn!(%segment, %source, %error, "a peer gave bad metadata");
                    }
                    Err(error) => {
                        reached = false;
                        tracing::debug!(%segment, %source, %error, "a source is away");
                    }
                }
            }
            let local = mover.local(segment.volume).ok();
            let own = local.map(|volume| volume.objects_of(segment.name)).unwrap_or_default();
            for key in own {
                match self.meta_from_own_store(mover, segment, Some(key)).await {
                    Ok(Some(meta)) => return Ok(meta),
                    Ok(None) => {}
                    Err(error) => reached &= answered(&error),
                }
            }
            reached_since = if reached { reached_since.or(Some(Instant::now())) } else { None };
            if reached_since.is_some_and(|since| since.elapsed() > limits::LOST_AFTER) {
                let context = format!(
                    "segment {segment}: no host or store that can be reached has its metadata; \
                     bring back the hosts that held it, or restore the volume"
                );
                return Err(Error::new(ErrorKind::Corrupt, context));
            }
            self.pause(mover, &mut pause).await?;
        }
    }

    async fn pause(&self, mover: &Mover, pause: &mut Duration) -> Result<()> {
        tokio::select! {
            () = tokio::time::sleep(*pause) => {}
            () = mover.closed.cancelled() => return Err(mover.closing("fetching")),
        }
        *pause = (*pause * 2).min(limits::SOURCE_RETRY_MAX);
        Ok(())
    }

    async fn ask_meta(&self, mover: &Mover, source: HostId, segment: SegmentId) -> Result<Bytes> {
        let request = Request::SegmentMeta { segment };
        let answer = mover.peers.call(source, Class::Demand, request, Bytes::new()).await?;
        let (Response::SegmentMeta { encoding }, payload) = answer else {
            let context =
                format!("host {source} answered a request for metadata with other things");
            return Err(Error::new(ErrorKind::Corrupt, context));
        };
        let wire = payload.len() as u64;
        mover.room(segment.volume).wire_bytes.fetch_add(wire, Ordering::Relaxed);
        let bytes = unpack(encoding, payload, META_BYTES_READ_MAX)?;
        let meta = SegmentMeta::decode(&bytes, &mover.context.key).map_err(|error| {
            let context = format!("segment {segment}: metadata from host {source} is bad: {error}");
            Error::new(ErrorKind::Corrupt, context)
        })?;
        if meta.id() != segment {
            let context = format!("host {source} sent metadata of {} for {segment}", meta.id());
            return Err(Error::new(ErrorKind::Corrupt, context));
        }
        Ok(bytes)
    }
}
