//! Paths of requests, in every mode: what is normal stays as it is, also where somebody decodes it once more, and no dot segments are
//! left; templates are compared with it.

#![no_main]

use ambit_core::policy::path::{PathNormalization, normalize};
use libfuzzer_sys::fuzz_target;

const MODES: [PathNormalization; 3] =
    [PathNormalization::Base, PathNormalization::MergeSlashes, PathNormalization::DecodeAndMergeSlashes];

fuzz_target!(|text: &str| {
    for mode in MODES {
        let Ok(target) = normalize(mode, text) else { continue };
        assert!(target.path.len() <= text.len());
        let again = normalize(mode, &target.path).expect("what is normal goes on");
        assert!(again.path == target.path && again.query.is_none(), "{} became {}", target.path, again.path);
        let dots = target.path.starts_with('/') && target.path.split('/').any(|part| part == "." || part == "..");
        assert!(!dots, "{}", target.path);
    }
});
