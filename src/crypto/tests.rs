//! Tests of the primitives with the values of their specifications, and with our test vectors.

use chacha20poly1305::{AeadInOut as _, ChaCha20Poly1305, KeyInit as _};
use rand::{SeedableRng as _, rngs::ChaCha20Rng};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::{
    vectors::{array, bytes, cases, hex, read},
    *,
};

/// The X25519 shared secret of a secret key and a public key, which are given in hexadecimal.
fn agreed(secret: &str, public: &str) -> Vec<u8> {
    let secret = OnionSecret::from_bytes(hex(secret).try_into().unwrap());
    secret.agree(&OnionPublic(hex(public).try_into().unwrap())).unwrap().as_bytes().to_vec()
}

#[test]
fn x25519_matches_rfc_7748_section_5_2() {
    assert_eq!(
        agreed(
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c"
        ),
        hex("c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552")
    );
    assert_eq!(
        agreed(
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493"
        ),
        hex("95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957")
    );
}

#[test]
fn iterated_x25519_matches_rfc_7748_section_5_2() {
    let nine: [u8; 32] = core::array::from_fn(|at| if at == 0 { 9 } else { 0 });
    let (mut k, mut u) = (nine, nine);
    for round in 1..=1000 {
        let next = *OnionSecret::from_bytes(k).agree(&OnionPublic(u)).unwrap().as_bytes();
        (k, u) = (next, k);
        if round == 1 {
            assert_eq!(k.to_vec(), hex("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"));
        }
    }
    assert_eq!(k.to_vec(), hex("684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"));
}

#[test]
fn key_agreement_matches_rfc_7748_section_6_1() {
    let alice = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
    let bob = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
    let alice_public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
    let bob_public = "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
    let public = |secret: &str| OnionSecret::from_bytes(hex(secret).try_into().unwrap()).public().0.to_vec();
    assert_eq!((public(alice), public(bob)), (hex(alice_public), hex(bob_public)));
    let shared = hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    assert_eq!((agreed(alice, bob_public), agreed(bob, alice_public)), (shared.clone(), shared));
}

#[test]
fn the_aead_matches_rfc_8439_section_2_8_2() {
    let key = hex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f");
    let aad = hex("50515253c0c1c2c3c4c5c6c7");
    let nonce: [u8; 12] = hex("070000004041424344454647").try_into().unwrap();
    let mut text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
                     sunscreen would be it."
        .to_vec();
    let cipher = ChaCha20Poly1305::new_from_slice(&key).unwrap();
    let tag = cipher.encrypt_inout_detached(&nonce.into(), &aad, text.as_mut_slice().into()).unwrap();
    assert_eq!(
        text,
        hex("d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6\
             3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36\
             92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc\
             3ff4def08e4b7a9de576d26586cec64b6116")
    );
    assert_eq!(tag.to_vec(), hex("1ae10b594f09e26a7e902ecbd0600691"));
}

#[cfg(feature = "native")]
proptest::proptest! {
    #[test]
    fn native_and_portable_code_seal_and_open_alike(
        key: [u8; 32],
        nonce: [u8; 12],
        text in proptest::collection::vec(proptest::num::u8::ANY, 0..1100),
        flip: proptest::sample::Index,
    ) {
        let (native, portable) = (aead::native::AeadKey::new(&key), aead::portable::AeadKey::new(&key));
        let plain = [&*text, &[0; TAG_LEN]].concat();
        let (mut by_native, mut by_portable) = (plain.clone(), plain);
        native.seal(nonce, &mut by_native).unwrap();
        portable.seal(nonce, &mut by_portable).unwrap();
        proptest::prop_assert_eq!(&by_native, &by_portable);
        let mut changed_for_native = by_native.clone();
        changed_for_native[flip.index(by_native.len())] ^= 1;
        let mut changed_for_portable = changed_for_native.clone();
        proptest::prop_assert_eq!(native.open(nonce, &mut changed_for_native), Err(aead::InvalidTag));
        proptest::prop_assert_eq!(portable.open(nonce, &mut changed_for_portable), Err(aead::InvalidTag));
        proptest::prop_assert!(changed_for_native.iter().chain(&changed_for_portable).all(|byte| *byte == 0), "a failed `open` zeroes the buffer");
        native.open(nonce, &mut by_portable).unwrap();
        portable.open(nonce, &mut by_native).unwrap();
        proptest::prop_assert_eq!((&by_native[..text.len()], &by_portable[..text.len()]), (&*text, &*text));
        proptest::prop_assert!(native.open(nonce, &mut by_native[..8]).is_err() && portable.open(nonce, &mut by_portable[..8]).is_err());
    }
}

#[test]
fn hkdf_matches_rfc_5869_appendix_a_1() {
    let source = KeySource::extract(&hex("000102030405060708090a0b0c"), &[&[0x0b; 22]]);
    let (label, context) = (hex("f0f1f2f3f4"), hex("f5f6f7f8f9"));
    assert_eq!(
        source.expand::<42>(&label, &context).to_vec(),
        hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    );
}

#[test]
fn hkdf_matches_rfc_5869_appendix_a_2() {
    let run = |from: u8, to: u8| (from..=to).collect::<Vec<u8>>();
    let source = KeySource::extract(&run(0x60, 0xaf), &[&run(0x00, 0x1f), &run(0x20, 0x4f)]);
    assert_eq!(
        source.expand::<82>(&run(0xb0, 0xbf), &run(0xc0, 0xff)).to_vec(),
        hex("b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c\
             59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71\
             cc30c58179ec3e87c14c01d5c1f3434f1d87")
    );
}

#[test]
fn hkdf_matches_rfc_5869_appendix_a_3() {
    let source = KeySource::extract(&[], &[&[0x0b; 22]]);
    assert_eq!(
        source.expand::<42>(&[], &[]).to_vec(),
        hex("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")
    );
}

#[test]
fn sha_256_of_abc_matches_fips_180() {
    let digest = hex("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!(sha256(b"abc").to_vec(), digest);
    assert_eq!(sha256_parts(&[b"a", b"", b"bc"]).to_vec(), digest);
}

#[test]
fn signatures_match_the_vectors() {
    for case in cases(&read(include_str!("../../proto/vectors/signature.json")), "signatures") {
        let key = IdentityKey::from_bytes(&array(&case["seed"]));
        let (context, message) = (case["context"].as_str().unwrap(), bytes(&case["message"]));
        assert_eq!(key.id().as_bytes(), &array(&case["identity"]));
        let signature = key.sign(context, &message);
        assert_eq!(signature, array(&case["signature"]));
        assert_eq!(verify(&key.id(), context, &message, &signature), Ok(()));
    }
}

#[test]
fn a_signature_is_valid_only_for_its_key_purpose_and_message() {
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    let (key, other) = (IdentityKey::generate(rng), IdentityKey::generate(rng));
    let signature = key.sign("purpose", b"message");
    assert_eq!(verify(&key.id(), "purpose", b"message", &signature), Ok(()));
    let refused = Err(CryptoError::Signature);
    assert_eq!(verify(&other.id(), "purpose", b"message", &signature), refused);
    assert_eq!(verify(&key.id(), "purposes", b"message", &signature), refused);
    assert_eq!(verify(&key.id(), "purpose", b"messages", &signature), refused);
    assert_eq!(verify(&key.id(), "purpos", b"emessage", &signature), refused);
    for at in 0..64 {
        let mut changed = signature;
        changed[at] ^= 1;
        assert_eq!(verify(&key.id(), "purpose", b"message", &changed), refused);
    }
}

#[test]
fn a_signature_by_a_key_of_small_order_is_refused() {
    // Without the check for small order, R = identity and s = 0 are valid for any message under the identity point.
    let mut point = [0; 32];
    point[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    let id = crate::base::RelayId::from_bytes(point);
    assert_eq!(verify(&id, "purpose", b"message", &signature), Err(CryptoError::Signature));
}

#[test]
fn keys_are_restored_from_their_bytes() {
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    let (identity, onion) = (IdentityKey::generate(rng), OnionSecret::generate(rng));
    assert_eq!(IdentityKey::from_bytes(&identity.to_bytes()).id(), identity.id());
    assert_eq!(OnionSecret::from_bytes(*onion.to_bytes()).public(), onion.public());
}

#[test]
fn a_dropped_digest_erases_its_state() {
    const fn erased<T: zeroize::ZeroizeOnDrop>() {}
    // Compiles only with the feature `zeroize` of the crate `sha2`.
    erased::<sha2::Sha256>();
}
