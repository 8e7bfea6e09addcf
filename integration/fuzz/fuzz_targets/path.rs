//! Paths of requests, in every mode: what is normal stays as it is, also where somebody decodes it once more, and no dot segments are
//! left. Short ones are what a slow way that shares no code with this one makes of them.

#![no_main]

#[path = "../../../agent/core/src/policy/path/slowly.rs"]
mod slowly;

use ambit_core::policy::path::{PathNormalization, normalize};
use libfuzzer_sys::fuzz_target;

const MODES: [PathNormalization; 3] =
    [PathNormalization::Base, PathNormalization::MergeSlashes, PathNormalization::DecodeAndMergeSlashes];

/// Bytes of the longest path that is normalised slowly too.
const SHORT: usize = 128;

fuzz_target!(|text: &str| {
    for mode in MODES {
        if text.len() <= SHORT && text.starts_with(['/', '%', '\\']) && !text.contains(['#', '?']) {
            let quick = normalize(mode, text).ok().map(|target| target.path.into_owned());
            let decodes = mode == PathNormalization::DecodeAndMergeSlashes;
            let slow = slowly::slowly(mode != PathNormalization::Base, decodes, text);
            assert_eq!(quick, slow, "{mode}: {text:?}");
        }
        let Ok(target) = normalize(mode, text) else { continue };
        assert!(target.path.len() <= text.len());
        let again = normalize(mode, &target.path).expect("what is normal goes on");
        assert!(again.path == target.path && again.query.is_none(), "{} became {}", target.path, again.path);
        let dots = target.path.starts_with('/') && target.path.split('/').any(|part| part == "." || part == "..");
        assert!(!dots, "{}", target.path);
    }
});
