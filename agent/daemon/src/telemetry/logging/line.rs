//! How an event becomes a line. Values come from peers and manifests: nothing in them can start a new line or field.

use std::fmt::{self, Debug, Write};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    field::RecordFields,
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

use super::LogFormat;
use crate::error::with_causes;

/// Formats events and the fields of the spans around them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lines(pub(crate) LogFormat);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::new(self.0);
        event.record(&mut fields);
        if let Some(scope) = ctx.event_scope() {
            for span in scope.from_root() {
                if let Some(recorded) = span.extensions().get::<FormattedFields<N>>() {
                    fields.rendered.push_str(&recorded.fields);
                }
            }
        }
        let metadata = event.metadata();
        let level = metadata.level().as_str().to_ascii_lowercase();
        let target = fields.log_target.as_deref().unwrap_or_else(|| metadata.target());
        let mut time = String::with_capacity(32);
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        match self.0 {
            LogFormat::Text => {
                write!(out, "{time}\t{level}\t{target}\t{}", OneLine(&fields.message))?;
                if !fields.rendered.is_empty() {
                    write!(out, "\t{}", fields.rendered.trim_start())?;
                }
            }
            LogFormat::Json => {
                write!(out, "{{\"time\":\"{time}\",\"level\":\"{level}\",\"target\":{}", Json(target))?;
                write!(out, ",\"message\":{}{}}}", Json(&fields.message), fields.rendered)?;
            }
        }
        writeln!(out)
    }
}

impl<'writer> FormatFields<'writer> for Lines {
    fn format_fields<R: RecordFields>(&self, mut out: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = Fields::new(self.0);
        fields.record(&mut visitor);
        out.write_str(&visitor.rendered)
    }

    fn add_fields(&self, current: &'writer mut FormattedFields<Self>, fields: &Record<'_>) -> fmt::Result {
        self.format_fields(current.as_writer(), fields)
    }
}

/// What an event calls a value that is many fields: its `Debug` writes them by [`FieldWriter`]. Of lines that each connection has, this
/// spares a copy of each field.
const FIELDS: &str = "fields";

/// Writes fields as a line has them: as JSON into a formatter in its alternate form, as text otherwise.
pub(crate) struct FieldWriter<'f, 'b>(&'f mut fmt::Formatter<'b>);

impl<'f, 'b> FieldWriter<'f, 'b> {
    pub(crate) fn new(formatter: &'f mut fmt::Formatter<'b>) -> Self {
        Self(formatter)
    }

    /// Any text, if there is one.
    pub(crate) fn text(&mut self, name: &str, value: Option<&str>) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        self.key(name)?;
        if is_plain(value) {
            return self.parts(&["\"", value, "\""]);
        }
        if self.0.alternate() { write!(self.0, "{}", Json(value)) } else { write!(self.0, "{value:?}") }
    }

    /// Text in parts, which have no sign in them that would be escaped.
    pub(crate) fn plain(&mut self, name: &str, parts: &[&str]) -> fmt::Result {
        self.key(name)?;
        self.parts(&["\""])?;
        self.parts(parts)?;
        self.parts(&["\""])
    }

    /// What has no sign in it that would be escaped.
    pub(crate) fn quoted(&mut self, name: &str, value: Option<impl fmt::Display>) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        self.key(name)?;
        write!(self.0, "\"{value}\"")
    }

    /// What has no blank in it either, as addresses have none.
    pub(crate) fn word(&mut self, name: &str, value: Option<impl fmt::Display>) -> fmt::Result {
        if self.0.alternate() { self.quoted(name, value) } else { self.number(name, value) }
    }

    pub(crate) fn number(&mut self, name: &str, value: Option<impl fmt::Display>) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        self.key(name)?;
        write!(self.0, "{value}")
    }

    fn key(&mut self, name: &str) -> fmt::Result {
        let (before, after) = if self.0.alternate() { (",\"", "\":") } else { (" ", "=") };
        self.parts(&[before, name, after])
    }

    fn parts(&mut self, parts: &[&str]) -> fmt::Result {
        parts.iter().try_for_each(|part| self.0.write_str(part))
    }
}

/// Collects the fields of one event, each with its separator in front: ` k=v` or `,"k":v`.
struct Fields {
    format: LogFormat,
    message: String,
    rendered: String,
    /// The true target of a record that came from the `log` crate.
    log_target: Option<String>,
}

impl Fields {
    fn new(format: LogFormat) -> Self {
        Self { format, message: String::new(), rendered: String::with_capacity(256), log_target: None }
    }

    fn number(&mut self, field: &Field, value: impl fmt::Display) {
        self.key(field);
        // Writing into a String does not fail.
        let _ = write!(self.rendered, "{value}");
    }

    fn key(&mut self, field: &Field) {
        match self.format {
            LogFormat::Text => self.rendered.extend([" ", field.name(), "="]),
            LogFormat::Json => {
                self.rendered.push(',');
                self.json(field.name());
                self.rendered.push(':');
            }
        }
    }

    fn json(&mut self, value: &str) {
        match is_plain(value) {
            true => self.rendered.extend(["\"", value, "\""]),
            false => {
                let _ = write!(self.rendered, "{}", Json(value));
            }
        }
    }

    fn text(&mut self, value: &str) {
        match is_plain(value) {
            true => self.rendered.extend(["\"", value, "\""]),
            false => {
                let _ = write!(self.rendered, "{value:?}");
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            "log.target" => self.log_target = Some(value.to_owned()),
            name if name.starts_with("log.") => {}
            _ => {
                self.key(field);
                match self.format {
                    LogFormat::Text => self.text(value),
                    LogFormat::Json => self.json(value),
                }
            }
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if !field.name().starts_with("log.") {
            self.number(field, value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.number(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.number(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_str(field, &with_causes(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == FIELDS {
            // Writing into a String does not fail.
            let _ = match self.format {
                LogFormat::Text => write!(self.rendered, "{value:?}"),
                LogFormat::Json => write!(self.rendered, "{value:#?}"),
            };
            return;
        }
        let text = format!("{value:?}");
        let bare = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
        if self.format == LogFormat::Text
            && field.name() != "message"
            && !text.is_empty()
            && text.bytes().all(bare)
        {
            self.key(field);
            self.rendered.push_str(&text);
        } else {
            self.record_str(field, &text);
        }
    }
}

/// Whether `text` stands for itself between quotation marks, which most values do: a line has twenty of them, and each
/// connection a line.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'))
}

/// Text without a control character in it.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_plain(self.0) {
            return f.write_str(self.0);
        }
        self.0.chars().try_for_each(|c| {
            if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) }
        })
    }
}

/// A JSON string.
struct Json<'a>(&'a str);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self.0).map_err(|_| fmt::Error)?)
    }
}
