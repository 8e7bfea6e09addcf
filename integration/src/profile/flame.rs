//! Stacks as a flame graph: one SVG file that shows names and shares under the pointer, and zooms into what is clicked.

use std::{collections::BTreeMap, fmt::Write as _};

use super::stacks::Stacks;

const WIDTH: f64 = 1200.0;
const ROW: f64 = 17.0;
const TOP: f64 = 46.0;
/// A letter's width at the font size of the style sheet.
const LETTER: f64 = 6.6;
/// Narrower frames are left out: they could not be seen.
const NARROWEST: f64 = 0.3;

const STYLE: &str = "text{font:11px ui-monospace,Menlo,monospace;pointer-events:none}.title{font:15px system-ui,sans-serif}\
    g{cursor:pointer}rect{stroke:#fff;stroke-width:.5}g:hover rect{stroke:#000}";

/// Zooms by stretching all frames so that the clicked one fills the width.
const ZOOM: &str = "const W=1200,all=[...document.querySelectorAll('g')];\
function show(x,w){for(const g of all){const gx=+g.dataset.x,gw=+g.dataset.w,l=Math.max(gx,x),r=Math.min(gx+gw,x+w);\
const on=r-l>w*1e-9;g.style.display=on?'':'none';if(!on)continue;const X=(l-x)/w*W,L=(r-l)/w*W;\
const b=g.querySelector('rect'),t=g.querySelector('text');b.setAttribute('x',X);b.setAttribute('width',L);t.setAttribute('x',X+3);\
const n=Math.floor((L-6)/6.6),s=g.dataset.n;t.textContent=n<3?'':s.length>n?s.slice(0,n-1)+'…':s}}\
for(const g of all)g.addEventListener('click',()=>show(+g.dataset.x,+g.dataset.w));";

#[derive(Default)]
struct Frame {
    samples: u64,
    callees: BTreeMap<String, Frame>,
}

/// The graph, outermost functions at the bottom.
pub(super) fn graph(stacks: &Stacks, title: &str) -> String {
    let mut root = Frame::default();
    for (stack, samples) in stacks.iter() {
        root.samples += samples;
        let mut frame = &mut root;
        for function in stack {
            frame = frame.callees.entry(function.clone()).or_default();
            frame.samples += samples;
        }
    }
    let rows = depth(&root, WIDTH / root.samples.max(1) as f64);
    let height = TOP + ROW * rows as f64 + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\">\
         <style>{STYLE}</style><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\
         <text class=\"title\" x=\"8\" y=\"22\">{}</text>\
         <text x=\"8\" y=\"38\">a click zooms in, one on the lowest row zooms out</text>",
        escaped(title)
    );
    let canvas = Canvas { all: root.samples.max(1) as f64, height };
    canvas.draw(&mut svg, "all", &root, 0.0, 0);
    svg + "<script>" + ZOOM + "</script></svg>\n"
}

/// How many rows of frames are wide enough to be drawn.
fn depth(frame: &Frame, scale: f64) -> usize {
    if (frame.samples as f64) * scale < NARROWEST {
        return 0;
    }
    1 + frame.callees.values().map(|callee| depth(callee, scale)).max().unwrap_or(0)
}

struct Canvas {
    all: f64,
    height: f64,
}

impl Canvas {
    fn draw(&self, svg: &mut String, name: &str, frame: &Frame, left: f64, row: usize) {
        let width = frame.samples as f64 / self.all * WIDTH;
        if width < NARROWEST {
            return;
        }
        let y = self.height - 10.0 - ROW * (row + 1) as f64;
        let letters = ((width - 6.0) / LETTER).max(0.0) as usize;
        let label: String = match name.chars().count() {
            _ if letters < 3 => String::new(),
            long if long > letters => name.chars().take(letters - 1).chain(['…']).collect(),
            _ => name.to_owned(),
        };
        // Writing into a String does not fail.
        let _ = write!(
            svg,
            "<g data-x=\"{left:.3}\" data-w=\"{width:.3}\" data-n=\"{full}\"><title>{full}: {share:.2} %, {samples} samples</title>\
             <rect x=\"{left:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{ROW}\" fill=\"{colour}\"/>\
             <text x=\"{text:.2}\" y=\"{line:.1}\">{label}</text></g>",
            full = escaped(name),
            share = 100.0 * frame.samples as f64 / self.all,
            samples = frame.samples,
            colour = colour(name),
            text = left + 3.0,
            line = y + 12.5,
            label = escaped(&label),
        );
        let mut at = left;
        for (name, callee) in &frame.callees {
            self.draw(svg, name, callee, at, row + 1);
            at += callee.samples as f64 / self.all * WIDTH;
        }
    }
}

/// The kernel is orange, ambit blue, encryption green, the rest sand; shades tell neighbours apart.
fn colour(name: &str) -> String {
    let hue = match name {
        kernel if kernel.ends_with("_[k]") => 28,
        ours if ours.contains("ambit") => 212,
        tls if ["rustls", "aws_lc", "aes", "gcm"].iter().any(|part| tls.contains(part)) => 130,
        _ => 50,
    };
    let shade = name.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 16;
    format!("hsl({hue},75%,{}%)", 62 + shade)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_as_wide_as_their_share() {
        let mut stacks = Stacks::default();
        stacks.add(["t", "f<T>", "g_[k]"].map(str::to_owned).to_vec(), 3);
        stacks.add(["t", "f<T>"].map(str::to_owned).to_vec(), 1);
        let svg = graph(&stacks, "a & b");
        assert!(svg.contains("<title>f&lt;T&gt;: 100.00 %, 4 samples</title>"), "{svg}");
        assert!(svg.contains("data-x=\"0.000\" data-w=\"900.000\" data-n=\"g_[k]\""), "{svg}");
        assert!(svg.contains("a &amp; b") && !svg.contains("src="));
    }

    #[test]
    fn what_cannot_be_seen_is_left_out() {
        let mut stacks = Stacks::default();
        stacks.add(["t", "wide"].map(str::to_owned).to_vec(), 1_000_000);
        stacks.add(["t", "narrow", "deep", "deeper"].map(str::to_owned).to_vec(), 1);
        let svg = graph(&stacks, "");
        assert!(!svg.contains("narrow"));
        assert_eq!(svg.matches("<g ").count(), 3);
    }
}
