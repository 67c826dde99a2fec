//! The figures, and the page that shows them.

use super::guest::{Kind, Sample, Story};
use super::image::Content;
use super::options::Link;
use super::plot::{Plot, Scale, Side, short};
use super::verify::Verdict;
use super::watch::Point;
use crate::output::bytes;
use serde::Serialize;

/// When what happened, in seconds on the demo's clock, and what had crossed the link by the end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moments {
    /// The move was declared.
    pub(super) declared: f64,
    /// The guest left the source.
    pub(super) left: f64,
    /// Its first write at the target was answered.
    pub(super) arrived: f64,
    /// Nothing depended on the source any more.
    pub(super) independent: f64,
    /// Bytes over the link from the declaration to independence, both directions.
    pub(super) wan_bytes: u64,
}

/// The demo's figures. The names are stable, see `docs/demo.md`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Figures {
    image_bytes: u64,
    data_bytes: u64,
    rtt_ms: f64,
    rate_mbit: f64,
    loss: f64,
    switch_ms: f64,
    stall_ms_max: f64,
    wan_bytes: u64,
    floor_bytes: u64,
    independent_s: f64,
    wan_reads_after_switch: u64,
    guest_requests: usize,
    records_written: u64,
    records_lost: u64,
    file_system_clean: Option<bool>,
    pub(super) verified: bool,
}

impl Figures {
    pub(super) fn new(
        link: Link,
        content: Content,
        moments: Moments,
        stall_ms_max: f64,
        wan_reads_after_switch: u64,
        story: &Story,
        verdict: &Verdict,
    ) -> Self {
        Self {
            image_bytes: content.image_bytes,
            data_bytes: content.data_bytes,
            rtt_ms: link.rtt_ms,
            rate_mbit: link.rate_mbit,
            loss: link.loss,
            switch_ms: (moments.arrived - moments.left) * 1000.0,
            stall_ms_max,
            wan_bytes: moments.wan_bytes,
            floor_bytes: content.floor_bytes,
            independent_s: moments.independent - moments.arrived,
            wan_reads_after_switch,
            guest_requests: story.samples.len(),
            records_written: story.written,
            records_lost: verdict.records_lost,
            file_system_clean: verdict.file_system_clean,
            verified: verdict.is_good(),
        }
    }

    fn stall_rtts(&self) -> f64 {
        if self.rtt_ms > 0.0 { self.stall_ms_max / self.rtt_ms } else { 0.0 }
    }

    fn share(&self, of: u64) -> f64 {
        if of == 0 { 0.0 } else { self.wan_bytes as f64 * 100.0 / of as f64 }
    }

    /// Name, value and what it means.
    fn rows(&self) -> [(&'static str, String, String); 8] {
        let stall_rtts = self.stall_rtts();
        [
            ("the disk", bytes(self.image_bytes), format!("{} of it data", bytes(self.data_bytes))),
            (
                "longest stall at the switch",
                format!("{:.0} ms", self.stall_ms_max),
                format!("{stall_rtts:.1} round trips, for any request of the guest"),
            ),
            (
                "time to switch",
                format!("{:.0} ms", self.switch_ms),
                "from the guest's leaving to its first write at the target".to_owned(),
            ),
            (
                "over the link",
                bytes(self.wan_bytes),
                format!(
                    "{:.0} % of the image, {:.0} % of its unique blocks compressed ({})",
                    self.share(self.image_bytes),
                    self.share(self.floor_bytes),
                    bytes(self.floor_bytes)
                ),
            ),
            (
                "independent after",
                format!("{:.1} s", self.independent_s),
                format!(
                    "from the switch; the link alone needs {:.1} s for what moved",
                    self.wan_bytes as f64 * 8.0 / (self.rate_mbit * 1e6)
                ),
            ),
            (
                "reads over the link",
                self.wan_reads_after_switch.to_string(),
                format!("after the switch; the guest made {} requests in all", self.guest_requests),
            ),
            (
                "records lost",
                self.records_lost.to_string(),
                format!("of {} acknowledged, written without pause", self.records_written),
            ),
            (
                "verified",
                if self.verified { "yes" } else { "NO" }.to_owned(),
                match self.file_system_clean {
                    Some(true) => {
                        "every byte, at the target alone; e2fsck finds nothing".to_owned()
                    }
                    Some(false) => "e2fsck finds damage".to_owned(),
                    None => "every byte, at the target alone".to_owned(),
                },
            ),
        ]
    }

    /// The figures for people.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (name, value, meaning) in self.rows() {
            text.push_str(&format!("\n  {name:<28} {value:>9}   {meaning}"));
        }
        text
    }
}

/// All that the page shows.
pub(super) struct Report<'a> {
    pub(super) figures: &'a Figures,
    pub(super) link: Link,
    pub(super) moments: Moments,
    pub(super) story: &'a Story,
    pub(super) points: &'a [Point],
}

const PAGE: &str = include_str!("report.html");

impl Report<'_> {
    /// The page: one file that needs nothing else.
    pub(super) fn html(&self) -> String {
        let loss = match self.link.loss {
            0.0 => String::new(),
            loss => format!(", {} % loss", short(loss * 100.0)),
        };
        let subtitle = format!(
            "{} with {} of data, from west to east over {} ms round trip and {} Mbit/s{loss}, \
             under a guest that never stops.",
            bytes(self.figures.image_bytes),
            bytes(self.figures.data_bytes),
            short(self.link.rtt_ms),
            short(self.link.rate_mbit),
        );
        let mut cards = String::new();
        for (name, value, meaning) in self.figures.rows() {
            cards.push_str(&format!(
                "<div class=card><div class=label>{name}</div><div class=value>{value}</div>\
                 <div class=meaning>{meaning}</div></div>"
            ));
        }
        PAGE.replace("{{subtitle}}", &subtitle)
            .replace("{{cards}}", &cards)
            .replace("{{around}}", &self.latency(self.around(), 300.0))
            .replace("{{latency}}", &self.latency(self.whole(), 300.0))
            .replace("{{residency}}", &self.residency())
            .replace("{{link}}", &self.link_use())
            .replace("{{version}}", env!("CARGO_PKG_VERSION"))
    }

    /// Seconds from the switch.
    fn since(&self, at: f64) -> f64 {
        at - self.moments.arrived
    }

    fn whole(&self) -> Scale {
        let first = self.points.first().map_or(0.0, |point| self.since(point.at));
        let last = self.points.last().map_or(1.0, |point| self.since(point.at));
        Scale::linear(first, last)
    }

    fn around(&self) -> Scale {
        Scale::linear(-1.0, 2.0)
    }

    fn mark(&self, plot: &mut Plot) {
        plot.moment(self.since(self.moments.declared), "declared", Side::Before);
        plot.moment(0.0, "switch", Side::Behind);
        plot.moment(self.since(self.moments.independent), "independent", Side::Before);
    }

    fn latency(&self, x: Scale, height: f64) -> String {
        let longest = self.story.samples.iter().map(|s| s.millis).fold(1.0, f64::max);
        let mut plot = Plot::new(x, Scale::log(0.02, longest), height, "ms, logarithmic");
        plot.span(self.since(self.moments.left), 0.0, "switching");
        plot.level(self.link.rtt_ms.max(0.02), "one round trip");
        for (kind, class) in [(Kind::Read, "read"), (Kind::Write, "write"), (Kind::Flush, "flush")]
        {
            let of_kind = |sample: &&Sample| sample.kind == kind && x.holds(self.since(sample.at));
            let samples = self.story.samples.iter().filter(of_kind);
            plot.dots(samples.map(|sample| (self.since(sample.at), sample.millis)), class);
        }
        self.mark(&mut plot);
        plot.svg("latency of the guest's requests over time")
    }

    fn residency(&self) -> String {
        let live = self.points.iter().map(|point| point.live).max().unwrap_or(0).max(1);
        let mib = |count: u64| count as f64 / f64::from(1 << 20);
        let mut plot = Plot::new(self.whole(), Scale::linear(0.0, mib(live) * 1.05), 240.0, "MiB");
        let curve = |of: fn(&Point) -> u64| -> Vec<(f64, f64)> {
            self.points.iter().map(|point| (self.since(point.at), mib(of(point)))).collect()
        };
        plot.curve(&curve(|point| point.resident), "resident", true);
        plot.curve(&curve(|point| point.stored), "stored", false);
        plot.level(mib(live), "all of it");
        self.mark(&mut plot);
        plot.svg("bytes of the disk at the target over time")
    }

    fn link_use(&self) -> String {
        let rates = |of: fn(&Point) -> u64| -> Vec<(f64, f64)> {
            let pairs = self.points.windows(2).filter(|pair| pair[1].at > pair[0].at);
            pairs
                .map(|pair| {
                    let carried = of(&pair[1]).saturating_sub(of(&pair[0])) as f64;
                    let rate = carried * 8.0 / 1e6 / (pair[1].at - pair[0].at);
                    (self.since(pair[1].at), rate)
                })
                .collect()
        };
        let top = Scale::linear(0.0, self.link.rate_mbit * 1.1);
        let mut plot = Plot::new(self.whole(), top, 160.0, "Mbit/s");
        plot.curve(&rates(|point| point.forth), "forth", true);
        plot.curve(&rates(|point| point.back), "back", false);
        plot.level(self.link.rate_mbit, "the link's rate");
        self.mark(&mut plot);
        plot.svg("rate over the link in both directions over time")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up move of 20 s at 40 ms and 200 Mbit/s.
    fn page() -> (Figures, String) {
        let link = Link { rtt_ms: 40.0, rate_mbit: 200.0, loss: 0.005 };
        let content =
            Content { image_bytes: 1 << 30, data_bytes: 700 << 20, floor_bytes: 300 << 20 };
        let moments = Moments {
            declared: 14.0,
            left: 14.6,
            arrived: 14.66,
            independent: 32.0,
            wan_bytes: 320 << 20,
        };
        let sample = |number: u32| {
            let at = 10.0 + f64::from(number) / 200.0;
            let wave = f64::from(number * 7919 % 1000) / 1000.0;
            let kind = [Kind::Read, Kind::Write, Kind::Flush][number as usize % 3];
            let at_target = at > moments.left;
            let slow = at_target && kind == Kind::Read && wave > (at - 14.0) / 18.0;
            let millis = if slow { 41.0 + wave } else { 0.06 + wave * wave };
            Sample { at, millis, kind, at_target }
        };
        let samples: Vec<Sample> = (0..5000).map(sample).collect();
        let story = Story { samples, records: vec![1; 4], written: 4711 };
        let point = |number: u32| {
            let at = 10.0 + f64::from(number) / 5.0;
            let share = ((at - 14.6) / 15.0).clamp(0.0, 1.0);
            let live = 700 << 20;
            let resident = (share * f64::from(live)) as u64;
            let forth = (share * f64::from(315 << 20)) as u64;
            let back = forth / 60;
            Point { at, live: live as u64, resident, stored: resident * 9 / 10, forth, back }
        };
        let points: Vec<Point> = (0..125).map(point).collect();
        let verdict =
            Verdict { blocks_differing: 0, records_lost: 0, file_system_clean: Some(true) };
        let figures = Figures::new(link, content, moments, 57.0, 412, &story, &verdict);
        let report = Report { figures: &figures, link, moments, story: &story, points: &points };
        let html = report.html();
        (figures, html)
    }

    #[test]
    fn the_page_stands_alone() {
        let (_, html) = page();
        assert_eq!(html.matches("<svg").count(), 4);
        assert!(!html.contains("{{") && !html.contains("NaN") && !html.contains("inf"));
        for outside in ["http:", "https:", "<script", "<link", "@import"] {
            assert!(!html.contains(outside), "the page refers to {outside}");
        }
        assert!(html.contains("57 ms") && html.contains("4711") && html.contains("0.5 % loss"));
        if let Ok(path) = std::env::var("PANNIER_TEST_REPORT") {
            std::fs::write(path, html).unwrap();
        }
    }

    #[test]
    fn the_names_of_the_figures_are_stable() {
        let (figures, _) = page();
        let value = serde_json::to_value(figures).unwrap();
        for name in [
            "image_bytes",
            "rtt_ms",
            "rate_mbit",
            "switch_ms",
            "stall_ms_max",
            "wan_bytes",
            "floor_bytes",
            "independent_s",
            "wan_reads_after_switch",
            "records_written",
            "records_lost",
            "verified",
        ] {
            assert!(value.get(name).is_some_and(|value| !value.is_null()), "no {name}");
        }
        let worse = Verdict { records_lost: 1, ..Verdict::default() };
        assert!(!worse.is_good() && Verdict::default().is_good());
    }
}
