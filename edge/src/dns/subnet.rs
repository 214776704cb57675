//! An address block such as `192.0.2.0/24`: the key of the region table and what EDNS Client
//! Subnet carries.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// An IPv4 or IPv6 block in canonical form: no bit is set behind the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    addr: IpAddr,
    prefix: u8,
}

/// Text that is not an address block, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address block: {reason}")]
pub struct BadSubnet {
    text: String,
    reason: &'static str,
}

impl Subnet {
    /// The block of `prefix` bits that `addr` lies in; a prefix longer than the address is cut to
    /// its width.
    pub fn of(addr: IpAddr, prefix: u8) -> Subnet {
        let prefix = prefix.min(width(addr));
        let addr = match addr {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask_v4(prefix))),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask_v6(prefix))),
        };
        Subnet { addr, prefix }
    }

    /// The first address of the block.
    pub fn addr(self) -> IpAddr {
        self.addr
    }

    /// Bits that are fixed.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The block around this one with at most `prefix` bits fixed.
    pub fn widened(self, prefix: u8) -> Subnet {
        Subnet::of(self.addr, prefix.min(self.prefix))
    }

    /// Whether an address lies in the block.
    pub fn covers(self, addr: IpAddr) -> bool {
        Subnet::of(addr, self.prefix) == self
    }
}

/// Bits in an address of this family.
pub(super) fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn mask_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn mask_v6(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = BadSubnet;

    /// Reads `address/prefix`, or an address alone as a block of one. Bits behind the prefix are
    /// refused: they are a slip of the pen more often than not.
    fn from_str(text: &str) -> Result<Subnet, BadSubnet> {
        let bad = |reason| BadSubnet { text: text.to_owned(), reason };
        let (addr, prefix) = match text.split_once('/') {
            Some((addr, prefix)) => (addr, Some(prefix)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| bad("the address cannot be read"))?;
        let prefix = match prefix {
            Some(digits) => digits.parse().map_err(|_| bad("the prefix is not a number"))?,
            None => width(addr),
        };
        if prefix > width(addr) {
            return Err(bad("the prefix is longer than the address"));
        }
        let subnet = Subnet::of(addr, prefix);
        if subnet.addr != addr {
            return Err(bad("bits are set behind the prefix"));
        }
        Ok(subnet)
    }
}

impl TryFrom<String> for Subnet {
    type Error = BadSubnet;

    fn try_from(text: String) -> Result<Subnet, BadSubnet> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> String {
        subnet.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn text_is_read_back_and_slips_are_refused() {
        for good in ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.1/32", "::/0", "2001:db8::/33"] {
            assert_eq!(good.parse::<Subnet>().unwrap().to_string(), good);
        }
        assert_eq!("192.0.2.1".parse::<Subnet>().unwrap().prefix(), 32);
        for bad in ["", "/", "10.0.0.0/33", "::/129", "10.0.0.1/8", "10.0.0.0/", "a/8", "10/8"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_block_is_cut_to_its_prefix() {
        let addr: IpAddr = "203.0.113.77".parse().unwrap();
        assert_eq!(Subnet::of(addr, 24).to_string(), "203.0.113.0/24");
        assert_eq!(Subnet::of(addr, 0).to_string(), "0.0.0.0/0");
        assert_eq!(Subnet::of(addr, 200).to_string(), "203.0.113.77/32");
        assert_eq!(Subnet::of(addr, 24).widened(28).prefix(), 24);
        let v6: IpAddr = "2001:db8:ffff::1".parse().unwrap();
        assert_eq!(Subnet::of(v6, 33).to_string(), "2001:db8:8000::/33");
        assert!(Subnet::of(v6, 33).covers(v6) && !Subnet::of(v6, 33).covers(addr));
        assert!(!Subnet::of(addr, 24).covers("203.0.112.1".parse().unwrap()));
    }
}
