//! The demo's course.

use super::Args;
use super::guest::{Disk, Guest, Story};
use super::image::{self, Content};
use super::options::Link;
use super::report::{Figures, Moments, Report};
use super::site::{Site, free_address};
use super::verify::{self, Verdict};
use super::watch::{Point, View};
use crate::api::types::BeginMove;
use crate::cli::transfer::image_size;
use crate::output::{Failure, Printer, bytes};
use hyper::Method;
use pannier_engine::error::ErrorKind;
use pannier_wan::{Relay, Wan};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::{block_in_place, spawn_blocking};

/// The volume's path in the demo's cluster.
const EXPORT: &str = "vms/web/disk0";

/// How often the move is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How long the guest runs at the source before the move, and at the target after it.
const BEFORE: Duration = Duration::from_secs(4);
const AFTER: Duration = Duration::from_secs(3);

/// How long the target may take to follow, and then to own the volume.
const SWITCH_MAX: Duration = Duration::from_secs(60);

/// Time around the switch in which a request counts as stalled by it, in seconds.
const STALL_WINDOW: f64 = 1.0;

/// The two sites and what is between them.
struct Stage {
    source: Site,
    target: Site,
    wan: Wan,
    _relays: [Relay; 2],
    clock: Instant,
    points: Vec<Point>,
}

/// Tells what happens, with the time since the beginning.
struct Narrator<'a> {
    printer: &'a Printer,
    clock: Instant,
}

impl Narrator<'_> {
    fn say(&self, what: &str) {
        self.printer.line(&format!("{:6.1} s  {what}", self.clock.elapsed().as_secs_f64()));
    }
}

/// Shows a move from its preparation to its proof.
pub(super) async fn show(
    args: &Args,
    link: Link,
    root: &Path,
    printer: &Printer,
) -> Result<Figures, Failure> {
    let clock = Instant::now();
    let narrator = Narrator { printer, clock };
    let image = prepare_image(args, root, &narrator).await?;
    let image_bytes = image_size(&image)?;
    let measured = spawn_blocking({
        let image = image.clone();
        move || image::measure(&image)
    });
    let mut stage = block_in_place(|| Stage::build(link, root, clock))?;
    narrator.say(&format!(
        "two sites, west and east, a daemon each; {} ms round trip and {} Mbit/s between them{}",
        link.rtt_ms,
        link.rate_mbit,
        if link.loss > 0.0 { format!(", {} % loss", link.loss * 100.0) } else { String::new() }
    ));
    let disk = Disk {
        source: stage.source.nbd_socket(),
        target: stage.target.nbd_socket(),
        export: EXPORT,
        image,
        image_bytes,
    };
    stage.import(&disk, &narrator)?;
    let content = measured
        .await
        .map_err(|error| Failure::new(ErrorKind::Internal, error.to_string()))?
        .map_err(|error| Failure::io("cannot measure the image", error))?;
    narrator.say(&format!(
        "imported at west: {} with {} of data; unique and compressed {}",
        bytes(content.image_bytes),
        bytes(content.data_bytes),
        bytes(content.floor_bytes)
    ));
    let guest = Guest::start(&disk, clock);
    narrator.say("a guest writes records, flushes, and reads at random at west, without pause");
    let (moments, reads) = match stage.travel(&guest, link, content, &narrator).await {
        Ok(travelled) => travelled,
        // What broke the guest says more than what it led to.
        Err(failure) if guest.is_broken() => {
            return Err(guest.stop().await.err().unwrap_or(failure));
        }
        Err(failure) => return Err(stage.explain(failure)),
    };
    let stall_ms_max = guest.longest(moments.left, moments.arrived + STALL_WINDOW);
    let story = guest.stop().await?;
    narrator.say(&format!("the guest stops after {} records", story.written));
    let verdict = stage.prove(&disk, &story, root, &narrator).await?;
    block_in_place(|| stage.target.stop());
    let figures = Figures::new(link, content, moments, stall_ms_max, reads, &story, &verdict);
    if let Some(path) = &args.report {
        let report =
            Report { figures: &figures, link, moments, story: &story, points: &stage.points };
        std::fs::write(path, report.html())
            .map_err(|error| Failure::io(format!("cannot write {}", path.display()), error))?;
        narrator.say(&format!("report: {}", path.display()));
    }
    Ok(figures)
}

async fn prepare_image(
    args: &Args,
    root: &Path,
    narrator: &Narrator<'_>,
) -> Result<std::path::PathBuf, Failure> {
    if let Some(image) = &args.image {
        narrator.say(&format!("the image is {}", image.display()));
        return Ok(image.clone());
    }
    let spinner = narrator.printer.spinner("making an image from this machine's files");
    let root = root.to_owned();
    let made = spawn_blocking(move || image::make(&root))
        .await
        .map_err(|error| Failure::new(ErrorKind::Internal, error.to_string()))?;
    spinner.finish();
    narrator.say("made an ext4 image from files of this machine");
    made
}

impl Stage {
    /// Starts both sites and joins them over the link.
    fn build(link: Link, root: &Path, clock: Instant) -> Result<Self, Failure> {
        let no_link = |error| Failure::io("cannot make the link", error);
        let wan = Wan::new(link.config()).map_err(no_link)?;
        let (first, second) = (free_address()?, free_address()?);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let to_source = wan.relay_to_first(any, first).map_err(no_link)?;
        let to_target = wan.relay_to_second(any, second).map_err(no_link)?;
        let mut source = Site::new("west", root, first);
        let mut target = Site::new("east", root, second);
        let address =
            |site: &Site, relay: &Relay| (site.listen.to_string(), relay.address().to_string());
        let (listen, reached) = address(&source, &to_source);
        source.run(&[
            "init",
            "--site",
            "west",
            "--name",
            "west",
            "--listen",
            &listen,
            "--advertise",
            &reached,
        ])?;
        source.serve()?;
        let token = source.run(&["token"])?;
        let (listen, reached) = address(&target, &to_target);
        target.run(&[
            "join",
            "--site",
            "east",
            "--name",
            "east",
            "--listen",
            &listen,
            "--advertise",
            &reached,
            "--token",
            &token,
        ])?;
        target.serve()?;
        let relays = [to_source, to_target];
        Ok(Self { source, target, wan, _relays: relays, clock, points: Vec::new() })
    }

    /// Imports the image at the source, and adds room for the guest's records.
    fn import(&self, disk: &Disk, narrator: &Narrator<'_>) -> Result<(), Failure> {
        let spinner = narrator.printer.spinner("importing the image at west");
        let (path, image) = (format!("/{EXPORT}"), disk.image.display().to_string());
        block_in_place(|| {
            self.source.run(&["volume", "import", &image, &path])?;
            let size = disk.volume_bytes().to_string();
            self.source.run(&["volume", "resize", &path, &size])
        })?;
        spinner.finish();
        Ok(())
    }

    async fn look(&mut self) -> Result<View, Failure> {
        let view = View::take(&self.target, EXPORT, &self.wan, self.clock).await?;
        self.points.push(view.point);
        Ok(view)
    }

    /// Looks until something is so; fails when that takes longer than `patience`.
    async fn until(
        &mut self,
        guest: &Guest,
        what: &str,
        patience: Duration,
        mut holds: impl FnMut(&Self, &View) -> bool,
    ) -> Result<View, Failure> {
        let begun = Instant::now();
        loop {
            let looked = self.look().await;
            if guest.is_broken() {
                return Err(Failure::new(ErrorKind::Internal, "the guest has failed"));
            }
            match looked {
                Ok(view) if holds(self, &view) => return Ok(view),
                Err(failure) if begun.elapsed() > patience => return Err(failure),
                Ok(_) if begun.elapsed() > patience => {
                    let seconds = patience.as_secs();
                    let what = format!("{what} did not happen within {seconds} s");
                    return Err(Failure::new(ErrorKind::Unavailable, what));
                }
                Ok(_) | Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Moves the disk under the guest, until nothing depends on the source. Returns when what was,
    /// and how many reads had to cross the link after the switch.
    async fn travel(
        &mut self,
        guest: &Guest,
        link: Link,
        content: Content,
        narrator: &Narrator<'_>,
    ) -> Result<(Moments, u64), Failure> {
        let begun = Instant::now();
        self.until(guest, "the guest's start", SWITCH_MAX, |_, _| begun.elapsed() > BEFORE).await?;
        let wan_before = self.wan.bytes();
        let declared = self.clock.elapsed().as_secs_f64();
        let site = self.target.name.to_owned();
        let begin = BeginMove { site, host: None, at_first_write: true };
        let path = format!("/v1/moves/{EXPORT}");
        self.source.api().send::<_, ()>(Method::POST, &path, &begin).await?;
        guest.open_target();
        self.until(guest, "east following west", SWITCH_MAX, |s, v| v.follows(&s.target)).await?;
        narrator.say("the move is declared, east follows; the guest goes there");
        let left = self.clock.elapsed().as_secs_f64();
        guest.go_to_target();
        self.until(guest, "the switch", SWITCH_MAX, |stage, view| {
            view.switched(&stage.target) && guest.first_write_at_target().is_some()
        })
        .await?;
        let arrived = guest.first_write_at_target().unwrap_or(left);
        narrator.say(&format!(
            "the guest runs at east: its first write there took {:.0} ms",
            (arrived - left) * 1000.0
        ));
        let wire = content.floor_bytes as f64 * 8.0 / (link.rate_mbit * 1e6);
        let patience = Duration::from_secs_f64(120.0 + 4.0 * wire);
        let bar = narrator.printer.bytes_bar("east takes", 0);
        let settled = self
            .until(guest, "independence of west", patience, |stage, view| {
                let (total, done) = view.progress();
                bar.set_total(total);
                bar.set(done);
                view.independent(&stage.target)
            })
            .await?;
        bar.finish();
        let independent = self.clock.elapsed().as_secs_f64();
        let wan_bytes = self.wan.bytes() - wan_before;
        narrator.say(&format!(
            "nothing depends on west any more, {:.1} s after the switch; {} crossed the link",
            independent - arrived,
            bytes(wan_bytes)
        ));
        let reads = settled.wan_reads();
        let begun = Instant::now();
        self.until(guest, "the guest's end", SWITCH_MAX, |_, _| begun.elapsed() > AFTER).await?;
        Ok((Moments { declared, left, arrived, independent, wan_bytes }, reads))
    }

    /// Cuts the link, kills the source, removes its directory, and reads the disk at the target.
    async fn prove(
        &mut self,
        disk: &Disk,
        story: &Story,
        root: &Path,
        narrator: &Narrator<'_>,
    ) -> Result<Verdict, Failure> {
        self.wan.cut();
        block_in_place(|| self.source.kill());
        std::fs::remove_dir_all(&self.source.dir)
            .map_err(|error| Failure::io("cannot remove west's directory", error))?;
        narrator.say("the link is cut, west is killed and its directory removed");
        let bar = narrator.printer.bytes_bar("reading east", disk.image_bytes);
        let verdict = verify::judge(disk, &story.records, &root.join("copy.raw"), &bar).await?;
        bar.finish();
        let image = match verdict.blocks_differing {
            0 => "the image byte for byte".to_owned(),
            count => format!("{count} blocks that differ"),
        };
        let records = match verdict.records_lost {
            0 => "all acknowledged records".to_owned(),
            count => format!("{count} records lost"),
        };
        let file_system = match verdict.file_system_clean {
            Some(true) => ", file system clean",
            Some(false) => ", file system damaged",
            None => "",
        };
        narrator.say(&format!("read at east alone: {image}, {records}{file_system}"));
        Ok(verdict)
    }

    /// Adds what the daemons complained about to a failure.
    fn explain(&self, failure: Failure) -> Failure {
        let mut message = failure.0.message.clone();
        for site in [&self.source, &self.target] {
            for line in site.complaints() {
                message.push_str(&format!("\n  {}: {line}", site.name));
            }
        }
        Failure::new(ErrorKind::Internal, message)
    }
}
