//! Plots as inline SVG: a time axis that all share, linear or logarithmic upwards.

use std::fmt::Write as _;

/// Size of a plot in pixels of its view box.
const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 36.0;
const BOTTOM: f64 = 34.0;

/// A scale from values to pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    from: f64,
    to: f64,
    log: bool,
}

impl Scale {
    pub(super) fn linear(from: f64, to: f64) -> Self {
        Self { from, to: if to > from { to } else { from + 1.0 }, log: false }
    }

    /// A logarithmic scale that begins and ends at powers of ten.
    pub(super) fn log(from: f64, to: f64) -> Self {
        let from = 10f64.powf(from.max(1e-9).log10().floor());
        let to = 10f64.powf(to.max(from * 10.0).log10().ceil());
        Self { from, to, log: true }
    }

    /// Where a value lies, 0 to 1; what lies beyond is at the edge.
    fn share(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.from) / self.from).log10() / (self.to / self.from).log10()
        } else {
            (value - self.from) / (self.to - self.from)
        };
        share.clamp(0.0, 1.0)
    }

    /// Whether a value lies within the scale.
    pub(super) fn holds(&self, value: f64) -> bool {
        (self.from..=self.to).contains(&value)
    }

    /// Values worth a grid line.
    fn ticks(&self, about: f64) -> Vec<f64> {
        if self.log {
            let decades = (self.to / self.from).log10().round() as i32;
            return (0..=decades).map(|decade| self.from * 10f64.powi(decade)).collect();
        }
        let rough = (self.to - self.from) / about;
        let power = 10f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0];
        let step = steps.iter().find(|step| *step * power >= rough).unwrap_or(&10.0) * power;
        let first = (self.from / step).ceil() as i64;
        let last = (self.to / step + 1e-9).floor() as i64;
        (first..=last).map(|number| number as f64 * step).collect()
    }
}

/// On which side of a moment's line its name stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Before,
    Behind,
}

/// A plot being drawn.
pub(super) struct Plot {
    x: Scale,
    y: Scale,
    height: f64,
    body: String,
}

/// A number without needless digits.
pub(super) fn short(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 100.0 || v == v.trunc() => 0,
        v if v >= 1.0 => 1,
        v if v >= 0.1 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

impl Plot {
    /// A plot with its grid. `unit` names the upward axis.
    pub(super) fn new(x: Scale, y: Scale, height: f64, unit: &str) -> Self {
        let mut plot = Self { x, y, height, body: String::new() };
        let (right, bottom) = (WIDTH - RIGHT, height - BOTTOM);
        for tick in y.ticks(5.0) {
            let at = plot.down(tick);
            let label = short(tick);
            plot.add(format_args!(
                "<line class=grid x1={LEFT} x2={right} y1={at:.1} y2={at:.1} />\
                 <text class=tick text-anchor=end x={:.0} y={:.1}>{label}</text>",
                LEFT - 8.0,
                at + 4.0
            ));
        }
        for tick in x.ticks(12.0) {
            let at = plot.right(tick);
            plot.add(format_args!(
                "<text class=tick text-anchor=middle x={at:.1} y={:.0}>{}</text>",
                bottom + 18.0,
                short(tick)
            ));
        }
        plot.add(format_args!("<text class=unit x=4 y=12>{unit}</text>"));
        plot
    }

    fn add(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let written = self.body.write_fmt(text);
        debug_assert!(written.is_ok());
    }

    fn right(&self, x: f64) -> f64 {
        LEFT + self.x.share(x) * (WIDTH - LEFT - RIGHT)
    }

    fn down(&self, y: f64) -> f64 {
        let bottom = self.height - BOTTOM;
        bottom - self.y.share(y) * (bottom - TOP)
    }

    /// A shaded span of time.
    pub(super) fn span(&mut self, from: f64, to: f64, class: &str) {
        let (left, right) = (self.right(from), self.right(to));
        let (width, height) = (right - left, self.height - BOTTOM - TOP);
        self.add(format_args!(
            "<rect class={class} x={left:.1} y={TOP} width={width:.1} height={height:.1} />"
        ));
    }

    /// A moment with its name, written on the side of the line that is asked for; nothing when it
    /// lies outside.
    pub(super) fn moment(&mut self, x: f64, name: &str, side: Side) {
        if !self.x.holds(x) {
            return;
        }
        let (at, bottom) = (self.right(x), self.height - BOTTOM);
        let (anchor, shift) = match side {
            Side::Before => ("end", -5.0),
            Side::Behind => ("start", 5.0),
        };
        self.add(format_args!(
            "<line class=moment x1={at:.1} x2={at:.1} y1={:.0} y2={bottom:.1} />\
             <text class=name text-anchor={anchor} x={:.1} y={:.0}>{name}</text>",
            TOP - 14.0,
            at + shift,
            TOP - 5.0
        ));
    }

    /// A level with its name.
    pub(super) fn level(&mut self, y: f64, name: &str) {
        let (at, right) = (self.down(y), WIDTH - RIGHT);
        self.add(format_args!(
            "<line class=level x1={LEFT} x2={right} y1={at:.1} y2={at:.1} />\
             <text class=name x={:.0} y={:.1}>{name}</text>",
            LEFT + 6.0,
            at - 5.0
        ));
    }

    /// Points; those that would cover each other are drawn once.
    pub(super) fn dots(&mut self, points: impl Iterator<Item = (f64, f64)>, class: &str) {
        let mut cells: Vec<(i32, i32)> = points
            .map(|(x, y)| ((self.right(x) * 1.5) as i32, (self.down(y) * 1.5) as i32))
            .collect();
        cells.sort_unstable();
        cells.dedup();
        let mut path = String::new();
        for (x, y) in cells {
            path.push_str(&format!("M{:.1} {:.1}h0", f64::from(x) / 1.5, f64::from(y) / 1.5));
        }
        self.add(format_args!("<path class=\"dots {class}\" d=\"{path}\" />"));
    }

    /// A curve; with `filled`, the area under it as well.
    pub(super) fn curve(&mut self, points: &[(f64, f64)], class: &str, filled: bool) {
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let mut line = String::new();
        for (x, y) in points {
            line.push_str(&format!("L{:.1} {:.1}", self.right(*x), self.down(*y)));
        }
        if filled {
            let bottom = self.height - BOTTOM;
            let (from, to) = (self.right(first.0), self.right(last.0));
            self.add(format_args!(
                "<path class=\"area {class}\" \
                 d=\"M{from:.1} {bottom:.1}{line}L{to:.1} {bottom:.1}Z\" />"
            ));
        }
        self.add(format_args!("<path class=\"curve {class}\" d=\"M{}\" />", &line[1..]));
    }

    /// The drawing, with a description for those who cannot see it.
    pub(super) fn svg(self, description: &str) -> String {
        let (height, body) = (self.height, self.body);
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=img \
             aria-label=\"{description}\">{body}</svg>"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales() {
        let log = Scale::log(0.07, 45.0);
        assert_eq!((log.from, log.to), (0.01, 100.0));
        assert_eq!(log.ticks(5.0).len(), 5);
        assert!((log.share(1.0) - 0.5).abs() < 1e-9);
        let linear = Scale::linear(-4.0, 21.0);
        assert_eq!(linear.ticks(5.0), [0.0, 5.0, 10.0, 15.0, 20.0]);
        assert_eq!(linear.share(99.0), 1.0);
        assert_eq!(short(0.01), "0.01");
        assert_eq!(short(250.0), "250");
        assert_eq!(short(1.50), "1.5");
    }
}
