//! Files on the node: read up to a bound, replaced in one step, followed while others change them.
//!
//! Promises that no file is read past its bound, that opening one never waits for a writer, and that a reader of a replaced
//! file sees the old content or all of the new. Leaves what is in the files to others.

mod read;
mod replace;
mod stamp;
mod watched;

pub(crate) use read::{ReadError, read, read_if, read_text};
pub(crate) use replace::{replace, replace_by};
pub(crate) use stamp::Stamp;
pub(crate) use watched::Watched;
