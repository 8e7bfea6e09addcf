use super::*;

fn examples() -> Vec<Control> {
    vec![
        Control::Open(Open {
            original_dst: "198.19.0.7:443".parse().unwrap(),
            service: Some("web.shop.svc.cluster.local".into()),
            trace: None,
            order: Order::default(),
            waits: false,
            strand: None,
        }),
        Control::Open(Open {
            original_dst: "[fd00:198::7]:80".parse().unwrap(),
            service: None,
            trace: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00".into()),
            order: Order { epoch: u64::MAX, number: 1 },
            waits: true,
            strand: Some(Strand { bundle: u64::MAX - 1, number: 7 }),
        }),
        Control::Accept { bundles: false },
        Control::Accept { bundles: true },
        Control::Deny(Refusal {
            reason: Reason::PolicyDenied,
            policy: Some("shop/default".into()),
            rule: Some("rules[0]".into()),
            field: Some("from[0].source.namespaces".into()),
            text: "no".into(),
        }),
        Control::Fin,
        Control::Reset(Refusal::new(Reason::Reset, "gone")),
        Control::Reset(Refusal { policy: Some("shop/p".into()), ..Refusal::new(Reason::PolicyDenied, "no") }),
        Control::Ping,
        Control::GoAway,
        Control::Mark(Mark { parcels: u32::MAX - 2, taken: 3 }),
    ]
}

/// All events of `chunks`, with neighbouring data joined.
fn decode(chunks: &[&[u8]]) -> Result<(Vec<Control>, Vec<u8>), FrameError> {
    let (mut decoder, mut controls, mut data) = (Decoder::default(), Vec::new(), Vec::new());
    for chunk in chunks {
        let mut input = *chunk;
        while let Some(event) = decoder.next(&mut input)? {
            match event {
                Event::Data(bytes) => data.extend_from_slice(bytes),
                Event::Control(control) => controls.push(control),
            }
        }
        assert!(input.is_empty());
    }
    Ok((controls, data))
}

#[test]
fn frames_survive_any_cut() {
    let mut wire = Vec::new();
    for control in examples() {
        wire.extend(control.encode());
        wire.extend(header(FrameType::Data, 5));
        wire.extend(b"hello");
        wire.extend(header(FrameType::Data, 0));
    }
    let whole = decode(&[&wire]).unwrap();
    assert_eq!(whole, (examples(), b"hello".repeat(examples().len())));
    for size in 1..wire.len() {
        let chunks: Vec<&[u8]> = wire.chunks(size).collect();
        assert_eq!(decode(&chunks).unwrap(), whole, "cut every {size} bytes");
    }
}

#[test]
fn hostile_frames_are_refused() {
    let deny_with = |text: &[u8]| {
        let mut payload = vec![0, 1, 0, 0];
        payload.extend((text.len() as u16).to_be_bytes());
        payload.extend(text);
        [header(FrameType::Deny, payload.len()).to_vec(), payload].concat()
    };
    let cases: &[(&[u8], FrameError)] = &[
        (&[0, 0, 0, 0], FrameError::UnknownType(0)),
        (&[99, 0, 0, 0], FrameError::UnknownType(99)),
        (&[1, 0, 0x10, 1], FrameError::TooLong(FrameType::Open, 4097)),
        (&[1, 0xff, 0xff, 0xff], FrameError::TooLong(FrameType::Open, MAX_DATA)),
        (&[1, 0, 0, 0], FrameError::Malformed(FrameType::Open)),
        (&[1, 0, 0, 3, 5, 0, 0], FrameError::Malformed(FrameType::Open)),
        (&[1, 0, 0, 7, 4, 1, 2, 3, 4, 0, 80], FrameError::Malformed(FrameType::Open)),
        (&[6, 0, 0, 1, 0], FrameError::Malformed(FrameType::Reset)),
        (&deny_with(b"line\nbreak"), FrameError::Malformed(FrameType::Deny)),
        (&deny_with(&[0xff, 0xfe]), FrameError::Malformed(FrameType::Deny)),
        (&deny_with(&[b'a'; 1025]), FrameError::Malformed(FrameType::Deny)),
    ];
    for (bytes, expected) in cases {
        assert_eq!(decode(&[bytes]), Err(*expected), "{bytes:?}");
    }
}

#[test]
fn a_refusal_without_a_rule_is_taken() {
    // Two bytes of code, an empty policy, a text: what agents wrote before refusals named rules.
    let payload = [&[0, 1, 0, 0, 0, 2][..], b"no"].concat();
    let frame = [header(FrameType::Deny, payload.len()).to_vec(), payload].concat();
    let (controls, _) = decode(&[&frame]).unwrap();
    assert_eq!(controls, [Control::Deny(Refusal::new(Reason::MtlsRequired, "no"))]);
}

#[test]
fn a_reset_without_words_is_taken() {
    let frame = [header(FrameType::Reset, 2).to_vec(), vec![0, 2]].concat();
    let (controls, _) = decode(&[&frame]).unwrap();
    assert_eq!(controls, [Control::Reset(Refusal::new(Reason::PolicyDenied, RESET))]);
}

#[test]
fn a_text_too_long_is_cut_at_a_character() {
    let deny = Refusal::new(Reason::Timeout, "ä".repeat(600));
    let (controls, _) = decode(&[&Control::Deny(deny).encode()]).unwrap();
    let [Control::Deny(deny)] = &controls[..] else { panic!("{controls:?}") };
    assert_eq!(*deny.text, *"ä".repeat(512));
}

#[test]
fn random_bytes_never_panic_and_hold_little() {
    // A fixed linear congruential generator: the same bytes every time.
    let mut state = 1_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    for _ in 0..20_000 {
        let mut bytes = [0_u8; 64];
        bytes.fill_with(&mut random);
        bytes[0] %= 9;
        bytes[1] = 0;
        bytes[2] %= 32;
        let mut decoder = Decoder::default();
        let mut input = &bytes[..];
        while let Ok(Some(_)) = decoder.next(&mut input) {}
        assert!(decoder.control.is_none_or(|(_, _, payload)| payload.len() <= MAX_CONTROL));
    }
}
