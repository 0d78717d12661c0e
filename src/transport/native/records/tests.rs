//! Tests of the record layer, alone and after a handshake of `dimpl`.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use dimpl::Output;
use proptest::prelude::*;

use super::{nonces::NonceWatch, tap::Tap, *};
use crate::transport::native::{CLIENT, DtlsPair, SERVER, dtls::check::has_finished};

fn direction(suite: CipherSuite, first: u8) -> DirectionKey {
    let bytes: Vec<u8> = (first..).take(suite.algorithm().key_len()).collect();
    let iv: Vec<u8> = (first + 0xa0..).take(suite.fixed_iv_len()).collect();
    DirectionKey::new(suite, &bytes, &iv).unwrap()
}

/// Both ends of an association.
fn ends(suite: CipherSuite, limits: KeyLimits) -> (Records, Records) {
    let [a, b] = [0, 64].map(|first| direction(suite, first));
    (Records::new(suite, &a, &b, limits).unwrap(), Records::new(suite, &b, &a, limits).unwrap())
}

fn seal(records: &mut Records, plaintext: &[u8]) -> Result<Vec<u8>, RecordError> {
    let mut buffer = vec![0xee; plaintext.len() + OVERHEAD + 3];
    let header = records.header_len();
    buffer[header..header + plaintext.len()].copy_from_slice(plaintext);
    let length = records.seal(&mut buffer, plaintext.len())?;
    assert!(buffer[length..].iter().all(|byte| *byte == 0xee), "no byte is written after the record");
    buffer.truncate(length);
    Ok(buffer)
}

fn close(records: &mut Records) -> Vec<u8> {
    let mut buffer = vec![0; 64];
    let length = records.close_notify(&mut buffer).unwrap();
    buffer.truncate(length);
    buffer
}

/// The contents of a datagram: the plaintexts, and the other contents.
fn open(records: &mut Records, datagram: &[u8]) -> Result<(Vec<Vec<u8>>, Vec<Opened>), RecordError> {
    let mut datagram = datagram.to_vec();
    let (mut packets, mut others) = (Vec::new(), Vec::new());
    records.open(&mut datagram, |opened| match opened {
        Opened::Data(packet) => packets.push(packet),
        other => others.push(other),
    })?;
    Ok((packets.into_iter().map(|packet| datagram[packet].to_vec()).collect(), others))
}

fn plaintexts(records: &mut Records, datagram: &[u8]) -> Vec<Vec<u8>> {
    open(records, datagram).unwrap().0
}

#[test]
fn records_match_those_of_another_implementation() {
    // Sealed by OpenSSL (Python's `cryptography`), in the format of RFC 6347 §4.1, RFC 5288 §3 and RFC 7905 §2.
    let vectors: [(_, &[u8], &[u8]); 2] = [
        (
            CipherSuite::Aes128Gcm,
            b"17fefd0001000000000000002b0001000000000000e43a6bdb6c3740de1b8147dc4a26357366a3590179652565f1d53cd4dcc9a29adc38ce",
            b"15fefd0001000000000001001a00010000000000011fd35d4f921d60ea6835cdb2b81120690361",
        ),
        (
            CipherSuite::ChaCha20Poly1305,
            b"17fefd0001000000000000002326bba483cd6a04ea5dedd275fea06ef20853415bad069731fedbbee2bf2805f8b9fb66",
            b"15fefd00010000000000010012e499116cb72291cbd51528e241c64a927579",
        ),
    ];
    for (suite, data, alert) in vectors {
        let (mut a, mut b) = ends(suite, KeyLimits::default());
        let sealed = [seal(&mut a, b"umbel carries cells").unwrap(), close(&mut a)];
        assert_eq!(data_encoding::HEXLOWER.encode(&sealed[0]).as_bytes(), data, "{suite:?}");
        assert_eq!(data_encoding::HEXLOWER.encode(&sealed[1]).as_bytes(), alert, "{suite:?}");
        let opened = open(&mut b, &sealed.concat()).unwrap();
        assert_eq!(opened, (vec![b"umbel carries cells".to_vec()], vec![Opened::CloseNotify]));
    }
}

#[test]
fn records_interoperate_with_dimpl_in_both_directions() {
    for suite in CipherSuite::ALL {
        let (mut pair, now) = (DtlsPair::new(&[suite]), Instant::now());
        let certificate = dimpl::certificate::generate_self_signed_certificate().unwrap();
        let suites = [suite.to_dtls()];
        let config = dimpl::Config::builder().dtls12_cipher_suites(&suites).build().unwrap();
        let mut stock = dimpl::Dtls::new_12(Arc::new(config), certificate, now);
        stock.set_active(true);
        stock.handle_timeout(now).unwrap();
        let (mut received, mut buffer) = (Vec::new(), vec![0; 4_096]);
        for round in 0..12u8 {
            loop {
                match stock.poll_output(&mut buffer) {
                    Output::Packet(packet) => pair.deliver(SERVER, packet.to_vec()),
                    Output::ApplicationData(data) => received.push(data.to_vec()),
                    Output::Timeout(_) => break,
                    _ => {}
                }
            }
            for datagram in pair.take_sent(SERVER) {
                stock.handle_packet(&datagram).unwrap();
            }
            if pair.ends[SERVER].connected {
                stock.send_application_data(&[round; 900]).unwrap();
                pair.send(SERVER, &[round; 1_100]);
            }
        }
        assert!(received.len() > 3 && received.iter().all(|data| *data == vec![data[0]; 1_100]), "{suite:?}");
        let ours = &pair.ends[SERVER].packets;
        assert!(ours.len() > 3 && ours.iter().all(|data| *data == vec![data[0]; 900]), "{suite:?}");
        assert_eq!(ours.len(), ours.iter().collect::<BTreeSet<_>>().len());
    }
}

#[test]
fn a_record_is_opened_once_and_in_any_order_within_the_window() {
    for suite in CipherSuite::ALL {
        let (mut a, mut b) = ends(suite, KeyLimits::default());
        let records: Vec<_> = (0..1_500u32).map(|number| seal(&mut a, &number.to_be_bytes()).unwrap()).collect();
        let order = [1_499, 476, 1_000, 475, 1_498, 0, 1_499, 1_000, 476];
        let opened: Vec<_> = order.into_iter().flat_map(|place| plaintexts(&mut b, &records[place])).collect();
        let expected = [1_499u32, 476, 1_000, 1_498].map(|number| number.to_be_bytes().to_vec());
        assert_eq!(opened, expected, "{suite:?}");
    }
}

#[test]
fn a_forged_record_is_dropped_and_the_genuine_one_is_opened() {
    for suite in CipherSuite::ALL {
        let (mut a, mut b) = ends(suite, KeyLimits::default());
        let record = seal(&mut a, &[7; 40]).unwrap();
        for bit in 0..record.len() * 8 {
            let mut forged = record.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&mut b, &forged), Ok((vec![], vec![])), "bit {bit}");
        }
        for cut in 0..record.len() {
            assert_eq!(open(&mut b, &record[..cut]), Ok((vec![], vec![])), "cut to {cut}");
        }
        assert_eq!(plaintexts(&mut b, &record), [vec![7; 40]]);
        // An end can't open its own records.
        assert_eq!(open(&mut a, &record), Ok((vec![], vec![])));
    }
}

#[test]
fn at_most_sixteen_records_of_a_datagram_are_read() {
    let (mut a, mut b) = ends(CipherSuite::Aes128Gcm, KeyLimits::default());
    let mut datagram = vec![22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4];
    for number in 0..16 {
        datagram.extend(seal(&mut a, &[number; 10]).unwrap());
    }
    let opened = plaintexts(&mut b, &datagram);
    assert_eq!(opened, (0..15).map(|number| vec![number; 10]).collect::<Vec<_>>());
}

#[test]
fn no_record_is_sealed_or_opened_after_close_notify() {
    for suite in CipherSuite::ALL {
        let (mut a, mut b) = ends(suite, KeyLimits::default());
        let late = seal(&mut a, b"late").unwrap();
        let notify = close(&mut a);
        assert_eq!(seal(&mut a, b"after"), Err(RecordError::Closed));
        assert_eq!(a.close_notify(&mut [0; 64]), Err(RecordError::Closed));
        assert_eq!(open(&mut b, &notify), Ok((vec![], vec![Opened::CloseNotify])));
        assert_eq!(open(&mut b, &late), Ok((vec![], vec![])));
    }
}

#[test]
fn a_fatal_alert_is_reported_and_a_warning_is_ignored() {
    let (mut a, mut b) = ends(CipherSuite::ChaCha20Poly1305, KeyLimits::default());
    let mut alert = |content: u8, body: &[u8]| {
        let mut buffer = vec![0; body.len() + OVERHEAD];
        buffer[HEADER..][..body.len()].copy_from_slice(body);
        let length = a.seal_as(content, &mut buffer, body.len()).unwrap();
        open(&mut b, &buffer[..length]).unwrap().1
    };
    assert_eq!(alert(ALERT, &[2, 40]), [Opened::Fatal(40)]);
    assert_eq!(alert(ALERT, &[1, 90]), []);
    assert_eq!(alert(ALERT, &[2]), []);
    assert_eq!(alert(HANDSHAKE, &[0, 0, 0, 0]), [], "a HelloRequest");
    assert_eq!(alert(HANDSHAKE, &[FINISHED]), [Opened::Finished]);
    assert_eq!(alert(20, &[1]), []);
    assert_eq!(alert(DATA, &[]), []);
}

#[test]
fn a_plaintext_beyond_its_buffer_or_limit_uses_no_sequence_number() {
    let (mut a, _) = ends(CipherSuite::Aes128Gcm, KeyLimits::default());
    for (room, length) in
        [(0, 0), (12, 0), (20, 0), (OVERHEAD - 1, 0), (OVERHEAD + 9, 10), (1 << 16, MAX_PLAINTEXT + 1)]
    {
        assert_eq!(a.seal(&mut vec![0; room], length), Err(RecordError::Length(length)));
    }
    assert_eq!(a.next_sequence, 0);
    assert_eq!(a.seal(&mut vec![0; OVERHEAD + MAX_PLAINTEXT], MAX_PLAINTEXT), Ok(OVERHEAD + MAX_PLAINTEXT));
}

#[test]
fn aes_gcm_keys_retire_once_then_end_and_chacha20_keys_do_neither() {
    let limits = KeyLimits { retire: 10, end: 50 + RESERVED_NUMBERS, ..KeyLimits::default() };
    for suite in CipherSuite::ALL {
        let _watch = NonceWatch::new();
        let (mut a, mut b) = ends(suite, limits);
        let (mut retired, mut ended) = ([None; 2], [None; 2]);
        for number in 1..=100 {
            let Ok(record) = seal(&mut a, &[1; 100]) else {
                ended[0] = ended[0].or(Some(number));
                continue;
            };
            if open(&mut b, &record).is_err() {
                ended[1] = ended[1].or(Some(number));
            }
            for (end, retired) in [&mut a, &mut b].into_iter().zip(&mut retired) {
                if end.take_retired() {
                    assert_eq!(retired.replace(number), None, "reported twice");
                }
            }
        }
        match suite {
            CipherSuite::Aes128Gcm => assert_eq!((retired, ended), ([Some(10); 2], [Some(51), Some(50)])),
            CipherSuite::ChaCha20Poly1305 => assert_eq!((retired, ended), ([None; 2], [None; 2])),
        }
        assert_eq!(open(&mut b, &close(&mut a)).map(|(_, others)| others).ok(), {
            // The keys of the other end are used up too.
            (suite == CipherSuite::ChaCha20Poly1305).then(|| vec![Opened::CloseNotify])
        });
    }
}

#[test]
fn a_long_record_counts_as_several() {
    let (mut a, _) = ends(CipherSuite::Aes128Gcm, KeyLimits { retire: 7, ..KeyLimits::default() });
    for (length, retires) in [(1_200, false), (COUNT_UNIT, false), (COUNT_UNIT + 1, false), (2 * COUNT_UNIT + 1, true)]
    {
        seal(&mut a, &vec![0; length]).unwrap();
        assert_eq!(a.take_retired(), retires, "{length}");
    }
}

#[test]
fn sequence_numbers_end_before_they_wrap() {
    for (suite, numbers) in
        [(CipherSuite::Aes128Gcm, GCM_SEQUENCE_NUMBERS), (CipherSuite::ChaCha20Poly1305, SEQUENCE_NUMBERS)]
    {
        let (mut a, mut b) = ends(suite, KeyLimits { end: u64::MAX, retire: u64::MAX, forged: 1 });
        (a.next_sequence, a.sealed) = (numbers - RESERVED_NUMBERS - 1, numbers - RESERVED_NUMBERS - 1);
        let last = seal(&mut a, b"last").unwrap();
        assert_eq!(plaintexts(&mut b, &last), [b"last"]);
        assert_eq!(seal(&mut a, b"one more"), Err(RecordError::KeyLimit));
        close(&mut a);
    }
}

#[test]
fn forged_records_end_the_link_at_their_limit_with_either_suite() {
    for suite in CipherSuite::ALL {
        let (mut a, mut b) = ends(suite, KeyLimits { forged: 5, ..KeyLimits::default() });
        let mut record = seal(&mut a, b"true").unwrap();
        *record.last_mut().unwrap() ^= 1;
        let outcomes: Vec<_> = (0..5).map(|_| open(&mut b, &record).is_err()).collect();
        assert_eq!(outcomes, [false, false, false, false, true]);
    }
}

#[test]
fn a_tapped_cipher_rejects_used_and_reserved_nonces_and_calls_outside_a_tap() {
    use dimpl::crypto::{Aad, Buf, Nonce, aws_lc_rs};
    let suites = Tap::install(aws_lc_rs::default_provider()).cipher_suites;
    let aad =
        |sequence: u64| Aad(additional_data((EPOCH | sequence).to_be_bytes(), HANDSHAKE, 0).into_iter().collect());
    let nonce = |explicit: u64| {
        let mut nonce = [9; 12];
        nonce[4..].copy_from_slice(&explicit.to_be_bytes());
        Nonce(nonce)
    };
    let watch = NonceWatch::new();
    let mut gcm = suites[0].create_cipher(&[1; 16]).unwrap();
    let mut tap = Tap::default();
    let mut seal = |tap: &mut Tap, sequence, explicit| {
        tap.with(|| gcm.encrypt(&mut Buf::new(), aad(sequence), nonce(explicit))).is_ok()
    };
    assert!(seal(&mut tap, 0, 77));
    assert!(!seal(&mut tap, 1, 77), "used");
    assert!(!seal(&mut tap, 1, EPOCH) && !seal(&mut tap, 1, EPOCH + GCM_SEQUENCE_NUMBERS - 1), "reserved");
    assert!(seal(&mut tap, 1, EPOCH - 1) && seal(&mut tap, 2, EPOCH + GCM_SEQUENCE_NUMBERS));
    assert!(!seal(&mut tap, 2, 78), "a sequence number used");
    assert!(gcm.encrypt(&mut Buf::new(), aad(3), nonce(79)).is_err(), "outside of a tap");
    assert!(tap.into_records(KeyLimits::default()).is_none(), "one direction only");
    assert_eq!(watch.sealed(), 3);
}

proptest! {
    #[test]
    fn no_datagram_makes_open_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        cut in 0usize..400,
        chacha in any::<bool>(),
    ) {
        let suite = if chacha { CipherSuite::ChaCha20Poly1305 } else { CipherSuite::Aes128Gcm };
        let (mut a, mut b) = ends(suite, KeyLimits::default());
        prop_assert_eq!(open(&mut b, &noise).unwrap().0.len(), 0);
        let mut datagram = [seal(&mut a, &[1; 90]).unwrap(), seal(&mut a, &[2; 90]).unwrap()].concat();
        for (byte, noise) in datagram.iter_mut().skip(cut % 260).zip(&noise) {
            *byte ^= noise;
        }
        datagram.truncate(cut.max(1));
        let _ = open(&mut b, &datagram).unwrap();
    }
}

#[test]
fn nonces_are_unique_despite_repeated_losses_of_a_finished() {
    for suite in CipherSuite::ALL {
        for losing_end in [CLIENT, SERVER] {
            for lost in 1..=5 {
                let mut pair = DtlsPair::new(&[suite]);
                pair.dial();
                let (mut left, mut finished) = (lost, Vec::new());
                for round in 0.. {
                    assert!(round < 200, "{suite:?}, the Finished of {losing_end} lost {lost} times");
                    for from in [CLIENT, SERVER] {
                        for datagram in pair.take_sent(from) {
                            if from == SERVER && has_finished(&datagram) {
                                finished.push(datagram.clone());
                            }
                            if from == losing_end && left > 0 && has_finished(&datagram) {
                                left -= 1;
                                continue;
                            }
                            pair.deliver(1 - from, datagram);
                        }
                    }
                    if pair.ends[SERVER].connected {
                        assert!(pair.send(SERVER, &[round; 500]));
                    }
                    if pair.both_connected() && pair.ends[CLIENT].packets.len() > 5 {
                        break;
                    }
                    if pair.ends.iter().all(|end| end.sent.is_empty()) || pair.ends[SERVER].connected {
                        pair.advance();
                    }
                }
                assert_eq!(left, 0);
                // The bytes are identical each time, so the Finished was sealed once.
                finished.dedup();
                assert_eq!(finished.len(), 1, "{suite:?}, the Finished of {losing_end} lost {lost} times");
                pair.send(CLIENT, b"an answer");
                for datagram in pair.take_sent(CLIENT) {
                    pair.deliver(SERVER, datagram);
                }
                assert_eq!(pair.ends[SERVER].packets, [b"an answer"]);
                assert!(pair.sealed() > 7);
            }
        }
    }
}

/// A pair with a connected server whose last flight is not delivered yet, and the client's last flight.
fn with_last_flight_undelivered(suite: CipherSuite) -> (DtlsPair, Vec<Vec<u8>>) {
    let mut pair = DtlsPair::new(&[suite]);
    pair.dial();
    let mut flight = Vec::new();
    while !pair.ends[SERVER].connected {
        flight = pair.take_sent(CLIENT);
        for datagram in flight.clone() {
            pair.deliver(SERVER, datagram);
        }
        if !pair.ends[SERVER].connected {
            for datagram in pair.take_sent(SERVER) {
                pair.deliver(CLIENT, datagram);
            }
        }
    }
    (pair, flight)
}

#[test]
fn only_a_new_finished_before_data_repeats_the_last_flight_of_a_server() {
    for suite in CipherSuite::ALL {
        let (mut pair, old) = with_last_flight_undelivered(suite);
        let first = pair.take_sent(SERVER);
        // A third party can send replays and plaintext.
        for datagram in old {
            pair.deliver(SERVER, datagram);
        }
        assert!(pair.take_sent(SERVER).is_empty());
        let mut repeated = Vec::new();
        for _ in 0..3 {
            pair.advance();
            let flight = pair.take_sent(CLIENT);
            assert!(flight.iter().any(|datagram| has_finished(datagram)));
            for datagram in &flight {
                pair.deliver(SERVER, datagram.clone());
            }
            repeated.push(pair.take_sent(SERVER));
        }
        assert_eq!(repeated, [first.clone(), first.clone(), first.clone()]);
        let last = first.into_iter().next().unwrap();
        assert!(last.len() <= 75);
        pair.deliver(CLIENT, last);
        assert!(pair.both_connected());
        pair.send(CLIENT, b"data");
        for datagram in pair.take_sent(CLIENT) {
            pair.deliver(SERVER, datagram);
        }
        assert!(!pair.keeps_last_flight(SERVER), "the client has sent data");
    }
}

#[test]
fn close_notify_is_answered_and_closes_both_ends() {
    for suite in CipherSuite::ALL {
        let (mut pair, _) = with_last_flight_undelivered(suite);
        for datagram in pair.take_sent(SERVER) {
            pair.deliver(CLIENT, datagram);
        }
        pair.close(CLIENT);
        for from in [CLIENT, SERVER, CLIENT] {
            for datagram in pair.take_sent(from) {
                pair.deliver(1 - from, datagram);
            }
        }
        assert!(pair.ends.iter().all(|end| end.closed && end.failure.is_none() && end.sent.is_empty()));
        assert_eq!(pair.sealed(), 4, "a Finished and a close_notify of each end");
    }
}
