//! The frames of the tunnel, from the bytes of a peer: no panic, the same frames however the bytes are cut, and what was read is
//! written so that it is read alike. The first byte says where they are cut.

#![no_main]

use ambit_core::frame::{Control, Decoder, Event, FrameError};
use libfuzzer_sys::fuzz_target;

/// The bytes of the stream, the other frames, and how it ended.
type Read = (Vec<u8>, Vec<Control>, Result<bool, FrameError>);

fuzz_target!(|bytes: &[u8]| {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(whole, read(bytes, usize::from(*step).max(1)));
    for control in &whole.1 {
        let written = control.encode();
        assert_eq!(read(&written, written.len()), (vec![], vec![control.clone()], Ok(true)));
    }
});

fn read(bytes: &[u8], step: usize) -> Read {
    let (mut decoder, mut data, mut controls) = (Decoder::default(), Vec::new(), Vec::new());
    for mut part in bytes.chunks(step) {
        loop {
            match decoder.next(&mut part) {
                Ok(Some(Event::Data(bytes))) => data.extend_from_slice(bytes),
                Ok(Some(Event::Control(control))) => controls.push(control),
                Ok(None) => break,
                Err(error) => return (data, controls, Err(error)),
            }
        }
    }
    let between = decoder.between_frames();
    (data, controls, Ok(between))
}
