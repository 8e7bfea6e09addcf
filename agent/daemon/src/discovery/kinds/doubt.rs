//! What an object counts as that cannot be read. Promises never to widen access: where a field is in doubt, the stricter
//! reading of it counts. Whether the last good version goes before is told by the kind; knowing it is left to the ledger.

use ambit_core::discovery::Settings;
use serde_json::Value;

use super::{FieldError, Key, Stated, Unreadable, Valid};

/// Fields of one object that are passed over; one with more has nothing worth reading.
const MAX_FIELDS: usize = 64;

/// What the object counts as of which `error` is the first thing that cannot be read.
pub(super) fn reading(key: &Key, object: &Value, error: &FieldError, settings: &Settings) -> Stated {
    match key.kind.row().unreadable {
        Unreadable::Strictest(strictest, _) => {
            Stated::Strictest(strictest(key.name.clone(), object, error, settings))
        }
        Unreadable::InPart(in_place_of) => {
            Stated::Bad(in_part(key, object.clone(), error.field.clone(), settings, in_place_of))
        }
    }
}

/// Reads the object without the fields that cannot be read.
fn in_part(
    key: &Key,
    mut object: Value,
    mut bad: Option<String>,
    settings: &Settings,
    in_place_of: fn(&str, &Settings) -> Value,
) -> Option<super::Change> {
    let mut before: Option<String> = None;
    for nth in 0..MAX_FIELDS {
        let mut field = bad?;
        if nth >= MAX_FIELDS / 2 {
            field = whole(&field).to_owned();
        }
        // Another value did not help: what it stands in is of no use either.
        if let Some(before) = before.filter(|before| before.starts_with(&*field)) {
            field = parent(&before)?.to_owned();
        }
        // A version that is not known says nothing of how the rest is to be read; the usual way is the best guess.
        if field != "apiVersion" {
            replace(&mut object, &field, in_place_of(&field, settings));
        }
        match (key.kind.row().read)(key.name.clone(), &object, settings) {
            Ok(Valid { change, .. }) => return Some(change),
            Err(error) => bad = error.field,
        }
        before = Some(field);
    }
    None
}

/// The list that the field is in, or the field of the object's first level but one: what is full of mistakes is passed over as a
/// whole.
fn whole(field: &str) -> &str {
    let in_list = field.find('[');
    let second_level = || field.match_indices('.').nth(1).map(|(at, _)| at);
    in_list.or_else(second_level).map_or(field, |end| &field[..end])
}

/// The path of what holds the field.
fn parent(field: &str) -> Option<&str> {
    field.rfind(['.', '[']).map(|end| &field[..end]).filter(|parent| !parent.is_empty())
}

/// Puts a value in the place of the field, or of the deepest part of its path that is there: keys may hold dots. An item of a list
/// that is to be absent is taken out.
fn replace(object: &mut Value, field: &str, with: Value) {
    let path: Vec<&str> = field.split(['.', '[']).map(|part| part.trim_end_matches(']')).collect();
    replace_at(object, &path, with);
}

fn replace_at(place: &mut Value, path: &[&str], with: Value) {
    match (path, place) {
        ([part, rest @ ..], Value::Object(fields)) if fields.contains_key(*part) => {
            if let Some(below) = fields.get_mut(*part) {
                replace_at(below, rest, with);
            }
        }
        ([part, rest @ ..], Value::Array(items)) if part.parse().is_ok_and(|at: usize| at < items.len()) => {
            let at = part.parse().unwrap_or_default();
            if rest.is_empty() && with.is_null() {
                items.remove(at);
            } else if let Some(below) = items.get_mut(at) {
                replace_at(below, rest, with);
            }
        }
        (_, place) => *place = with,
    }
}
