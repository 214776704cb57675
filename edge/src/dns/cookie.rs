//! DNS cookies (RFC 7873) in the form that servers of different makers share (RFC 9018).
//!
//! A client that shows a cookie of ours is not a forged address, so answers to it are not limited.
//! Pure: the time and the secret are arguments.

use std::net::IpAddr;

/// The client's part.
pub(super) const CLIENT_BYTES: usize = 8;
/// Both parts, ours being of RFC 9018 section 4.
pub(super) const FULL_BYTES: usize = 24;
/// Lengths of the whole option that RFC 7873 section 5.2.2 allows beside the client's part alone.
const FULL_RANGE: std::ops::RangeInclusive<usize> = 16..=40;
/// Version of RFC 9018.
const VERSION: u8 = 1;
/// How old a cookie may be, and how far ahead of our clock, in seconds (RFC 9018 section 4.3).
const AGE_MAX_SECS: i32 = 3600;
const AHEAD_MAX_SECS: i32 = 300;

/// What all name servers of one address have in common.
#[derive(Clone, Copy)]
pub(super) struct Secret(pub(super) [u8; 16]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The COOKIE option of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cookie<'p> {
    client: [u8; CLIENT_BYTES],
    server: &'p [u8],
}

impl<'p> Cookie<'p> {
    /// Reads the option; nothing if its length is not allowed, which is a malformed query.
    pub(super) fn read(option: &'p [u8]) -> Option<Cookie<'p>> {
        let (client, server) = option.split_first_chunk::<CLIENT_BYTES>()?;
        let allowed = server.is_empty() || FULL_RANGE.contains(&option.len());
        allowed.then_some(Cookie { client: *client, server })
    }

    /// Whether the server's part is one that we gave to this address, not too long ago.
    pub(super) fn is_ours(&self, secret: &Secret, from: IpAddr, now_secs: u32) -> bool {
        let Ok(server) = <[u8; FULL_BYTES - CLIENT_BYTES]>::try_from(self.server) else {
            return false;
        };
        let [VERSION, 0, 0, 0, a, b, c, d, ..] = server else { return false };
        let time = u32::from_be_bytes([a, b, c, d]);
        // Serial number arithmetic (RFC 1982), since the seconds wrap around.
        let age = now_secs.wrapping_sub(time) as i32;
        (-AHEAD_MAX_SECS..=AGE_MAX_SECS).contains(&age)
            && server == server_part(secret, self.client, from, time)
    }

    /// The option of the reply: a new cookie.
    pub(super) fn renewed(&self, secret: &Secret, from: IpAddr, now_secs: u32) -> [u8; FULL_BYTES] {
        let mut full = [0; FULL_BYTES];
        full[..CLIENT_BYTES].copy_from_slice(&self.client);
        full[CLIENT_BYTES..].copy_from_slice(&server_part(secret, self.client, from, now_secs));
        full
    }
}

fn server_part(
    secret: &Secret,
    client: [u8; CLIENT_BYTES],
    from: IpAddr,
    time: u32,
) -> [u8; FULL_BYTES - CLIENT_BYTES] {
    let mut server = [0; FULL_BYTES - CLIENT_BYTES];
    server[0] = VERSION;
    server[4..8].copy_from_slice(&time.to_be_bytes());
    let mut input = [0; CLIENT_BYTES + 8 + 16];
    input[..8].copy_from_slice(&client);
    input[8..16].copy_from_slice(&server[..8]);
    let length = match from.to_canonical() {
        IpAddr::V4(v4) => {
            input[16..20].copy_from_slice(&v4.octets());
            20
        }
        IpAddr::V6(v6) => {
            input[16..32].copy_from_slice(&v6.octets());
            32
        }
    };
    server[8..].copy_from_slice(&siphash24(&secret.0, &input[..length]).to_le_bytes());
    server
}

/// SipHash-2-4 (Aumasson, Bernstein 2012).
pub(super) fn siphash24(key: &[u8; 16], input: &[u8]) -> u64 {
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    let (k0, k1) = (word(&key[..8]), word(&key[8..]));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let chunks = input.chunks_exact(8);
    let last = word(chunks.remainder()) | (input.len() as u64) << 56;
    for message in chunks.map(word).chain([last]) {
        v[3] ^= message;
        round(&mut v);
        round(&mut v);
        v[0] ^= message;
    }
    v[2] ^= 0xff;
    (0..4).for_each(|_| round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        let digits: Vec<u8> =
            hex.bytes().map(|digit| char::from(digit).to_digit(16).unwrap() as u8).collect();
        let all: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        all.try_into().unwrap()
    }

    /// RFC 9018 appendix A.
    #[test]
    fn the_vectors_of_the_rfc() {
        let secret = Secret(bytes("e5e973e5a6b2a43f48e7dc849e37bfcf"));
        let from: IpAddr = "198.51.100.100".parse().unwrap();
        let client: [u8; 8] = bytes("2464c4abcf10c957");
        let asked = Cookie::read(&client).unwrap();
        let expected: [u8; 24] = bytes("2464c4abcf10c957010000005cf79f111f8130c3eee29480");
        assert_eq!(asked.renewed(&secret, from, 1_559_731_985), expected);
        let shown = Cookie::read(&expected).unwrap();
        assert!(shown.is_ours(&secret, from, 1_559_734_385));
        let renewed: [u8; 24] = bytes("2464c4abcf10c957010000005cf7a871d4a564a1442aca77");
        assert_eq!(shown.renewed(&secret, from, 1_559_734_385), renewed);
    }

    /// The vectors of the paper: key 00..0f, input 00..0e.
    #[test]
    fn siphash_is_siphash() {
        let key: [u8; 16] = std::array::from_fn(|index| index as u8);
        assert_eq!(siphash24(&key, &key[..15]), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn others_cookies_old_ones_and_forged_ones_are_not_ours() {
        let secret = Secret([7; 16]);
        let from: IpAddr = "2001:db8::1".parse().unwrap();
        let now = 1_700_000_000;
        let full = Cookie::read(&[1; 8]).unwrap().renewed(&secret, from, now);
        let ours = |full: &[u8], from, now| Cookie::read(full).unwrap().is_ours(&secret, from, now);
        assert!(ours(&full, from, now) && ours(&full, from, now + 3600));
        assert!(!ours(&full, from, now + 3601) && !ours(&full, from, now - 301));
        assert!(!ours(&full, "2001:db8::2".parse().unwrap(), now));
        assert!(!ours(&[1; 8], from, now) && !ours(&[1; 40], from, now));
        for at in 0..24 {
            let mut forged = full;
            forged[at] ^= 1;
            assert!(!ours(&forged, from, now), "byte {at}");
        }
        let other = Secret([8; 16]);
        assert!(!Cookie::read(&full).unwrap().is_ours(&other, from, now));
        for length in [0, 7, 9, 15, 41] {
            assert_eq!(Cookie::read(&vec![0; length]), None, "{length}");
        }
    }
}
