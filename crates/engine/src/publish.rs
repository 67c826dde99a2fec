//! Publishing: a checkpoint's objects go to the site's store, its root into the registry, and what
//! the root condemns out of the store.
//!
//! Publishing is one registry transaction, fenced by epoch, after all that the root names is in
//! the store. Only what a published root condemns is deleted, and only then. What there is to
//! condemn is found by comparing, so that no crash makes anything be forgotten: segments by the
//! volume's list of what it has stored (a line leaves it when the object is deleted), checkpoint
//! objects by the root that was published last and the local one that may have been on its way.

use crate::checkpoint::{Checkpointer, Saved};
use crate::context::{Publication, Publish};
use crate::error::{ErrorKind, Result};
use crate::volume::Volume;
use crate::volume::log::object_key;
use crate::volume::segment::blocking;
use pannier_core::format::checkpoint::Root;
use pannier_core::ids::{ObjectHash, SegmentName, Sequence};
use pannier_core::record::PublishedCheckpoint;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a volume knows of its checkpoints in the site's store.
pub(crate) struct StoreSide {
    /// The newest root that the registry has, once it was asked.
    published: Option<ObjectHash>,
    /// Objects that the store has for certain.
    certain: BTreeSet<ObjectHash>,
    /// Objects that it may have, roots among them: those that the next root does not name it
    /// condemns.
    pub(crate) objects: BTreeSet<ObjectHash>,
}

impl StoreSide {
    /// What an earlier life may have left: the local checkpoint may have been on its way.
    pub(crate) fn new(saved: &Saved) -> Self {
        let mut side = Self { published: None, certain: BTreeSet::new(), objects: BTreeSet::new() };
        side.may_have(saved);
        side
    }

    fn may_have(&mut self, saved: &Saved) {
        self.objects.extend(saved.objects());
        self.objects.insert(saved.hash);
        self.objects.extend(saved.root.condemned_objects.iter().copied());
    }
}

impl Volume {
    /// Segments that the store has and the map at a position does not name any more. Asked while
    /// no other checkpoint is made: what dies meanwhile keeps its place in the map.
    pub(crate) fn stored_dead(&self, last: Sequence) -> Vec<SegmentName> {
        let stored: Vec<_> = self.stored_list.lock().keys().copied().collect();
        let state = self.map.read();
        let dead = |name: &SegmentName| name.sequence <= last && state.named(*name).is_none();
        stored.into_iter().filter(dead).collect()
    }

    /// Puts the newest local checkpoint into the site's store and publishes it, if every segment
    /// that it names is stored. Returns the newest published root.
    pub(crate) async fn publish_checkpoint(&self) -> Result<Option<ObjectHash>> {
        let mut checkpointer = self.checkpointer.lock().await;
        let hash = checkpointer.saved.hash;
        let published = checkpointer.store.published;
        let Some(publish) = self.context.publish() else { return Ok(published) };
        if published == Some(hash) || !self.all_stored(&checkpointer.saved.root) {
            return Ok(published);
        }
        if published.is_none() {
            self.find_published(publish, &mut checkpointer.store).await?;
        }
        let Checkpointer { saved, store, .. } = &mut *checkpointer;
        store.may_have(saved);
        let objects = saved.objects();
        for object in objects.difference(&store.certain) {
            let bytes = self.checkpoint_page(*object).await?;
            self.context.objects.put(&object_key(self.id, *object), bytes).await?;
        }
        let root = saved.bytes.clone();
        self.context.objects.put(&object_key(self.id, hash), root.into()).await?;
        let epoch = self.journal.lock().epoch;
        let through = saved.root.through.sequence();
        let checkpoint = PublishedCheckpoint { epoch, through, object: hash };
        let size_bytes = saved.root.size_bytes;
        publish.publish(Publication { volume: self.id, epoch, checkpoint, size_bytes }).await?;
        store.published = Some(hash);
        store.certain = objects;
        self.delete_condemned(&saved.root, store).await?;
        Ok(Some(hash))
    }

    /// Learns which root an earlier life has published, and what it has named and condemned.
    async fn find_published(
        &self,
        publish: &Arc<dyn Publish>,
        store: &mut StoreSide,
    ) -> Result<()> {
        let Some(before) = publish.published(self.id).await? else { return Ok(()) };
        let objects = &self.context.objects;
        let get = async |hash| objects.get(&object_key(self.id, hash)).await;
        let root = match get(before.object).await {
            Ok(root) => root,
            // Another host of the site has published since, and deleted it.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut parts = BTreeMap::new();
        for part in Saved::parts_of(&root)? {
            match get(part).await {
                Ok(bytes) => _ = parts.insert(part, bytes.to_vec()),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        let part = |hash| Ok(parts.get(&hash).cloned().unwrap_or_default());
        match Saved::decode(&root, &self.context.key, part) {
            Ok(saved) => store.may_have(&saved),
            Err(error) => {
                tracing::warn!(volume = %self.id, %error, "what this root names stays stored");
            }
        }
        Ok(())
    }

    /// Whether the store has every segment under the generation that the root says.
    fn all_stored(&self, root: &Root) -> bool {
        let state = self.map.read();
        root.segments.iter().all(|live| {
            let known = state.named(live.name);
            known.is_some_and(|known| known.is_stored() && known.generation() == live.generation)
        })
    }

    /// Deletes what a root that was just published condemns. What cannot be deleted now the next
    /// root condemns again.
    async fn delete_condemned(&self, root: &Root, store: &mut StoreSide) -> Result<()> {
        for object in &root.condemned_objects {
            if self.delete_object(&object_key(self.id, *object)).await {
                store.objects.remove(object);
            }
        }
        let mut deleted = Vec::new();
        for (name, key) in self.condemned_by(root) {
            if self.delete_object(&key).await {
                deleted.push((name, key));
            }
        }
        if deleted.is_empty() {
            return Ok(());
        }
        let this = self.this()?;
        blocking(move || this.note_deleted(&deleted)).await
    }

    async fn delete_object(&self, key: &str) -> bool {
        let deleted = self.context.objects.delete(key).await;
        if let Err(error) = &deleted {
            tracing::debug!(%key, %error, "a condemned object stays for the next checkpoint");
        }
        deleted.is_ok()
    }
}
