#!/usr/bin/env python3
"""Writes the test vectors: a second implementation of proto/02-channel.md, proto/03-cells.md, proto/04-handshake.md and,
for volunteers, proto/07-directory.md.

Shares no code with the Rust implementation: HKDF by hmac and hashlib, other primitives by OpenSSL through the package
`cryptography`.
Usage: python3 reference.py            writes *.json into the folder of this script
       python3 reference.py --check    fails if a file differs from the generated vectors
"""

import hashlib
import hmac
import ipaddress
import json
import pathlib
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

BODY = 1019
CELLS_PER_KEY = 1 << 16


def seed(text):
    """32 bytes in place of a random value. The vectors contain each of these values."""
    return hashlib.sha256(b"umbel vectors: " + text.encode()).digest()


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def extract(salt, secret):
    return hmac.digest(salt, secret, "sha256")


def expand(key, info, length):
    out, block, count = b"", b"", 1
    while len(out) < length:
        block = hmac.digest(key, block + info + bytes([count]), "sha256")
        out, count = out + block, count + 1
    return out[:length]


def public(secret):
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def x25519(secret, point):
    return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(point))


def seal(key, nonce, text):
    return ChaCha20Poly1305(key).encrypt(nonce, text, b"")


# 04-handshake.md


def handshake(name, hop, request_payload, reply_payload):
    identity = Ed25519PrivateKey.from_private_bytes(seed(name + " identity")).public_key().public_bytes_raw()
    b, x, y = seed(name + " onion key"), seed(name + " origin ephemeral"), seed(name + " relay ephemeral")
    kind = b"\x00\x01"
    big_b, big_x, big_y = public(b), public(x), public(y)
    es, ee = x25519(x, big_b), x25519(y, big_x)
    h1 = sha256(b"umbel 1 handshake request", kind, bytes([hop]), identity, big_b, big_x)
    request_key = expand(extract(h1, es), b"umbel 1 request payload", 32)
    c1 = seal(request_key, bytes(12), request_payload)
    h2 = sha256(b"umbel 1 handshake reply", h1, big_y, c1)
    secret = extract(h2, es + ee)
    reply_key = expand(secret, b"umbel 1 reply payload", 32)
    c2 = seal(reply_key, bytes(12), reply_payload)
    h3 = sha256(b"umbel 1 handshake done", h2, c2)
    auth = expand(secret, b"umbel 1 authenticator" + h3, 32)
    keys = expand(secret, b"umbel 1 hop keys" + h3, 64)
    values = {
        "identity": identity, "onion_secret": b, "onion_public": big_b,
        "origin_ephemeral_secret": x, "origin_ephemeral_public": big_x,
        "relay_ephemeral_secret": y, "relay_ephemeral_public": big_y,
        "request_payload": request_payload, "reply_payload": reply_payload,
        "es": es, "h1": h1, "request_key": request_key, "c1": c1, "request": kind + big_b + big_x + c1,
        "ee": ee, "h2": h2, "secret": secret, "reply_key": reply_key, "c2": c2, "h3": h3, "auth": auth,
        "reply": kind + big_y + auth + c2, "forward": keys[:32], "backward": keys[32:],
    }
    return {"name": name, "hop": hop} | {key: value.hex() for key, value in values.items()}


def handshakes():
    good = [
        handshake("first hop, empty payloads", 1, b"", b""),
        handshake("third hop, short payloads", 3, b"asks", b"tells"),
        handshake("eighth hop, longest payloads", 8, bytes(i % 251 for i in range(1024)), bytes(i % 241 for i in range(1024))),
    ]
    base = good[1]

    def refused(why, **changes):
        return {"why": why} | {key: base[key] for key in ("hop", "identity", "onion_secret", "request")} | changes

    request = base["request"]
    low = [bytes(32), b"\x01" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"]
    bad = [
        refused("wrong hop number", hop=4),
        refused("wrong identity", identity=seed("another identity").hex()),
        refused("unknown onion key", onion_secret=seed("another onion key").hex()),
        refused("unknown type", request="0002" + request[4:]),
        refused("cut short", request=request[:-2]),
        refused("a byte too many", request=request + "00"),
        refused("top bit of the ephemeral key set", request=request[:130] + "%02x" % (int(request[130:132], 16) | 0x80) + request[132:]),
    ] + [refused("ephemeral key of small order", request=request[:68] + point.hex() + request[132:]) for point in low]
    return {"specification": "proto/04-handshake.md", "handshakes": good, "refused_requests": bad}


# 03-cells.md §4


class Layer:
    """The cipher of one hop and direction."""

    def __init__(self, key):
        self.counter, self.layer = 0, key
        self.ratchet()

    def ratchet(self):
        out = expand(self.layer, b"umbel 1 ratchet", 64)
        self.key, self.layer = out[:32], out[32:]

    def nonce(self):
        return bytes(4) + self.counter.to_bytes(8, "big")

    def seal(self, text):
        sealed = seal(self.key, self.nonce(), text)
        self.skip()
        return sealed

    def skip(self):
        self.counter += 1
        if self.counter % CELLS_PER_KEY == 0:
            self.ratchet()


def ratchet():
    start = seed("ratchet")
    layer, keys, cells, text = Layer(start), [], [], b"thirty-two bytes of a plaintext."
    for counter in range(2 * CELLS_PER_KEY + 1):
        if counter % CELLS_PER_KEY == 0:
            keys.append({"first_counter": counter, "cell_key": layer.key.hex(), "next_layer_key": layer.layer.hex()})
        if counter in (0, 1, CELLS_PER_KEY - 1, CELLS_PER_KEY, 2 * CELLS_PER_KEY - 1, 2 * CELLS_PER_KEY):
            nonce = layer.nonce().hex()
            cells.append({"counter": counter, "nonce": nonce, "plaintext": text.hex(), "sealed": layer.seal(text).hex()})
        else:
            layer.skip()
    return {"specification": "proto/03-cells.md section 4", "layer_key": start.hex(), "keys": keys, "cells": cells}


# 03-cells.md §3


def sealed_length(hop):
    return BODY - 17 * (hop - 1)


def fill(body):
    return body + bytes(BODY - len(body))


def forward(layers, hop, message):
    """The body on each link, from the first link to the link into `hop`."""
    body, bodies = b"\x01" + message + bytes(sealed_length(hop) - 17 - len(message)), []
    for at in range(hop, 0, -1):
        sealed = layers[at - 1].seal(body)
        assert len(sealed) == sealed_length(at)
        bodies.insert(0, fill(sealed))
        body = b"\x00" + sealed
    return bodies


def backward(layers, hop, message):
    """The body on each link, from the link out of `hop` to the first link."""
    body, bodies = b"\x01" + message + bytes(sealed_length(hop) - 17 - len(message)), []
    for at in range(hop, 0, -1):
        sealed = layers[at - 1].seal(body)
        bodies.append(fill(sealed))
        body = b"\x00" + sealed
    return bodies


def circuit(length, messages):
    hops = [{"forward": seed(f"{length}-hop circuit, hop {at}, forward").hex(),
             "backward": seed(f"{length}-hop circuit, hop {at}, backward").hex()} for at in range(1, length + 1)]
    layers = {direction: [Layer(bytes.fromhex(hop[direction])) for hop in hops]
              for direction in ("forward", "backward")}
    cells = []
    for direction, hop, message in messages:
        bodies = (forward if direction == "forward" else backward)(layers[direction], hop, message)
        cells.append({"direction": direction, "hop": hop, "message": message.hex(),
                      "bodies": [body.hex() for body in bodies]})
    return {"hops": hops, "cells": cells}


def onion():
    longest = lambda hop: bytes((7 * i + hop) % 256 for i in range(sealed_length(hop) - 17))
    three = [("forward", 3, b"to the third"), ("backward", 3, b"from the third"), ("forward", 1, b"to the first"),
             ("forward", 3, longest(3)), ("backward", 2, longest(2)), ("backward", 3, b""), ("forward", 2, b"to the second")]
    return {"specification": "proto/03-cells.md section 3",
            "circuits": [circuit(3, three), circuit(8, [("forward", 8, longest(8)), ("backward", 8, longest(8))])]}


# 03-cells.md §5


def fragments():
    def case(body, capacity):
        whole = len(body).to_bytes(2, "big") + body
        pieces = [whole[at:at + capacity].hex() for at in range(0, len(whole), capacity)]
        return {"body": body.hex(), "capacity": capacity, "fragments": pieces}

    body = bytes(range(100))
    refused = [
        {"why": "length zero", "fragments": ["000000"]},
        {"why": "no byte of the body", "fragments": ["0001"]},
        {"why": "longer than may be", "fragments": ["0fe701"]},
        {"why": "padding not zero", "fragments": ["00010101"]},
        {"why": "a fragment that adds nothing", "fragments": ["000301", ""]},
        {"why": "more than four", "fragments": ["000501", "02", "03", "04"]},
    ]
    return {"specification": "proto/03-cells.md section 5",
            "bodies": [case(body[:1], 3), case(body, 102), case(body, 101), case(body, 26)],
            "padded": [{"body": "01", "fragments": ["0001010000"]}, {"body": "010203", "fragments": ["000301", "020300"]}],
            "refused": refused}


# 04-handshake.md §6


def signatures():
    def case(name, context, message):
        secret = seed(name)
        key = Ed25519PrivateKey.from_private_bytes(secret)
        signed = b"umbel 1 signature " + context.encode() + b"\x00" + message
        return {"seed": secret.hex(), "identity": key.public_key().public_bytes_raw().hex(), "context": context,
                "message": message.hex(), "signed_bytes": signed.hex(), "signature": key.sign(signed).hex()}

    return {"specification": "proto/04-handshake.md section 6",
            "signatures": [case("signer one", "channel", b""), case("signer two", "descriptor", b"some document")]}


# 02-channel.md §2 and §3


def channel():
    def end(name, identity, versions, capabilities, observed):
        key = Ed25519PrivateKey.from_private_bytes(seed(name + " identity"))
        identity = key.public_key().public_bytes_raw() if identity else bytes(32)
        certificate, nonce = seed(name + " certificate"), seed(name + " nonce")
        signed_fields = bytes([len(versions)]) + b"".join(version.to_bytes(2, "big") for version in versions)
        signed_fields += capabilities.to_bytes(8, "big") + identity + nonce
        host = ipaddress.ip_address(observed[0])
        address = bytes([host.version]) + host.packed.rjust(16, b"\x00")
        hello = b"\x01" + signed_fields + address + observed[1].to_bytes(2, "big")
        return {"key": key, "signed": signed_fields + certificate,
                "json": {"seed": seed(name + " identity").hex(), "identity": identity.hex(), "versions": versions,
                         "capabilities": capabilities, "nonce": nonce.hex(), "certificate": certificate.hex(),
                         "observed": list(observed), "hello": hello.hex()}}

    def case(dialler, dialled):
        ends = {"dialler": dialler, "dialled": dialled}
        for number, end in enumerate(ends.values()):
            message = bytes([number + 1]) + (1).to_bytes(2, "big") + dialler["signed"] + dialled["signed"]
            signature = end["key"].sign(b"umbel 1 signature channel\x00" + message)
            proves = end["json"]["identity"] != bytes(32).hex()
            end["json"] |= {"proof_message": message.hex(), "proof": (b"\x02" + signature).hex() if proves else None}
        return {name: end["json"] for name, end in ends.items()}

    relay = lambda name, observed: end(name, True, [1], 0, observed)
    client = end("client", False, [1], 0, ("2001:db8::5", 4443))
    return {"specification": "proto/02-channel.md sections 2 and 3",
            "channels": [case(relay("relay one", ("192.0.2.9", 4443)), relay("relay two", ("198.51.100.7", 50000))),
                         case(client, relay("relay two", ("2001:db8::77", 50000))),
                         case(end("relay three", True, [7, 1], 5, ("192.0.2.9", 4443)),
                              relay("relay two", ("198.51.100.7", 50000)))]}


# 07-directory.md §9


NOW, SKEW, LIFETIME = 1_800_000_000, 3_600, 64_800


def field(number, value):
    """The encoding of a field of a Protocol Buffers message: no bytes for a zero or empty value, as in proto3."""
    def varint(value):
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value) if value else b""
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value if value else b""


def repeated(number, values):
    """The encoding of a repeated field, with empty elements."""
    return b"".join(field(number, value) or bytes([number << 3 | 2, 0]) for value in values)


def keypair(name):
    key = Ed25519PrivateKey.from_private_bytes(seed(name))
    return key, key.public_key().public_bytes_raw()


def sign(key, purpose, message):
    return key.sign(b"umbel 1 signature " + purpose.encode() + b"\x00" + message)


def volunteers():
    key, identity = keypair("volunteer")
    stranger, stranger_id = keypair("stranger")
    gateways = sorted((keypair(f"gateway {number}") for number in range(1, 13)), key=lambda pair: pair[1])
    onion_key = seed("volunteer onion key")
    offer = repeated(1, ["kiwix", "wikipedia"])
    minimal = field(1, identity) + field(2, onion_key)
    full = minimal + repeated(3, [stranger_id]) + field(4, "someone") + field(5, offer) + field(6, "umbel 0.1.0")
    long = lambda host: minimal + field(4, "o" * 64) + field(5, repeated(2, ["h" * host])) + field(6, "umbel 0.1.0")
    longest, too_long = long(247), long(248)
    assert len(longest) == 400

    # Ranking.
    def ranking(name, relays):
        ranking_seed = seed(name)
        rank = lambda relay: sha256(b"umbel gateway ranking\x00", ranking_seed, identity, relay)
        return {"seed": ranking_seed.hex(), "volunteer": identity.hex(), "guards": [relay.hex() for relay in relays],
                "ranking": [relay.hex() for relay in sorted(relays, key=rank)[:8]]}

    identities = [pair[1] for pair in gateways]
    rankings = [ranking("ranking of twelve", identities), ranking("ranking of three", identities[:3])]

    # Descriptors.
    def descriptor(name, outcome, profile=minimal, signer=key, purpose="directory volunteer", now=NOW):
        document = field(1, profile) + field(2, NOW)
        signed = field(1, document) + field(2, sign(signer, purpose, document))
        return {"name": name, "signed": signed.hex(), "now": now, "outcome": outcome}

    unsigned = "not signed by the identity"
    descriptors = [
        descriptor("minimal", "counts"),
        descriptor("every field", "counts", profile=full),
        descriptor("last second", "counts", now=NOW + LIFETIME),
        descriptor("stale", "made too long ago", now=NOW + LIFETIME + 1),
        descriptor("from the future", "made in the future", now=NOW - SKEW - 1),
        descriptor("another signer", unsigned, signer=stranger),
        descriptor("another purpose", unsigned, purpose="directory descriptor"),
        descriptor("no onion key", "the onion key is zero", profile=field(1, identity) + field(2, bytes(32))),
        descriptor("the longest", "counts", profile=longest),
        descriptor("one byte longer", "more than 400 bytes", profile=too_long),
        descriptor("nine of family", "more than 8 relays", profile=minimal + repeated(3, identities[:9])),
        descriptor("its own family", "names itself as its family", profile=minimal + repeated(3, [identity])),
    ]

    # Registrations.
    def registration(names):
        ranking_seed, reached = seed("ranking of twelve"), [identities[number] for number in names]
        return {"seed": ranking_seed.hex(), "gateways": [relay.hex() for relay in reached],
                "encoded": (field(1, ranking_seed) + repeated(2, reached)).hex()}

    registrations = [registration([]), registration([5, 0, 2])]

    # Presence.
    gateway, gateway_id = gateways[0]
    present = sorted([identity, stranger_id])

    def presence(name, outcome, members=present, signer=gateway, at=NOW * 1000 + 5, now=NOW):
        document = field(1, gateway_id) + field(2, at) + repeated(3, members)
        signed = field(1, document) + field(2, sign(signer, "directory presence", document))
        return {"name": name, "gateway": gateway_id.hex(), "at_ms": at, "volunteers": [one.hex() for one in members],
                "signed": signed.hex(), "now": now, "outcome": outcome}

    presences = [
        presence("two volunteers", "counts"),
        presence("none", "counts", members=[]),
        presence("out of order", "out of order", members=present[::-1]),
        presence("one twice", "out of order", members=[identity, identity]),
        presence("another signer", "not signed by the gateway", signer=stranger),
        presence("too long ago", "made too long ago or in the future", now=NOW + SKEW + 1),
        presence("from the future", "made too long ago or in the future", now=NOW - SKEW - 1),
    ]

    # Lists.
    authorities = [keypair(f"authority {number}") for number in range(3)]

    def listed(profile, numbers):
        return field(1, profile) + repeated(2, [identities[number] for number in numbers])

    other = field(1, stranger_id) + field(2, onion_key)
    both = [listed(profile, numbers) for _, profile, numbers in
            sorted([(identity, full, [5, 0, 2]), (stranger_id, other, [1])])]

    def signed_list(at, signers, members, purpose="directory volunteers"):
        document = field(1, at) + field(2, at + 60) + field(3, at + 300) + repeated(4, members)
        signatures = [field(1, authorities[one][1]) + field(2, sign(authorities[one][0], purpose, document))
                      for one in signers]
        return field(1, document) + repeated(2, signatures)

    def volunteer_list(name, outcome, signers=(0,), configured=(0,), members=both, now=NOW, in_use=None, **more):
        return {"name": name, "signed": signed_list(NOW, signers, members, **more).hex(),
                "authorities": [authorities[one][1].hex() for one in configured], "now": now,
                "in_use": in_use and in_use.hex(), "outcome": outcome}

    lists = [
        volunteer_list("one authority", "counts"),
        volunteer_list("nobody", "counts", members=[]),
        volunteer_list("two of three", "counts", signers=(0, 2), configured=(0, 1, 2)),
        volunteer_list("one of three, thrice", "signed by 1 of 3", signers=(0, 0, 0), configured=(0, 1, 2)),
        volunteer_list("another purpose", "signed by 0 of 1", purpose="directory consensus"),
        volunteer_list("last second", "counts", now=NOW + 299),
        volunteer_list("expired", "expired", now=NOW + 300),
        volunteer_list("not yet valid", "not valid yet", now=NOW - SKEW - 1),
        volunteer_list("newer", "counts", in_use=signed_list(NOW - 1, (0,), both)),
        volunteer_list("the one in use", "counts", in_use=signed_list(NOW, (0,), both)),
        volunteer_list("older", "older than the one in use", in_use=signed_list(NOW + 1, (0,), both)),
        volunteer_list("another of the same date", "contradict themselves", in_use=signed_list(NOW, (0,), [])),
        volunteer_list("out of order", "out of order", members=both[::-1]),
        volunteer_list("the longest", "counts", members=[listed(longest, [5, 0, 2])]),
        volunteer_list("one byte longer", "more than 400 bytes", members=[listed(too_long, [0])]),
        volunteer_list("without gateway", "one to three", members=[listed(minimal, [])]),
        volunteer_list("four gateways", "one to three", members=[listed(minimal, [0, 1, 2, 3])]),
        volunteer_list("a gateway twice", "twice", members=[listed(minimal, [4, 4])]),
    ]
    return {"specification": "proto/07-directory.md section 9", "rankings": rankings, "descriptors": descriptors,
            "registrations": registrations, "presences": presences, "lists": lists}


def main():
    folder, differing = pathlib.Path(__file__).parent, []
    for make in (handshakes, ratchet, onion, fragments, signatures, channel, volunteers):
        path = folder / {"handshakes": "handshake", "signatures": "signature"}.get(make.__name__, make.__name__)
        path, text = path.with_suffix(".json"), json.dumps(make(), indent=1) + "\n"
        if "--check" not in sys.argv:
            path.write_text(text)
        elif path.read_text() != text:
            differing.append(path.name)
    if differing:
        sys.exit("differ from the reference: " + ", ".join(differing))


if __name__ == "__main__":
    main()
