//! Writes small databases in MaxMind's format, for tests: the real ones are under licences.
//!
//! After the specification "MaxMind DB File Format" 2.0. Always an IPv6 tree with IPv4 below
//! `::/96`, and records of 32 bits.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::IpAddr;

use super::subnet::Subnet;

/// A value of a record.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// UTF-8.
    Text(String),
    /// Floating point.
    Double(f64),
    /// Unsigned, 32 bits.
    Uint(u32),
    /// Keys and values.
    Map(Vec<(String, Value)>),
    /// Values.
    Array(Vec<Value>),
}

#[derive(Clone, Copy, PartialEq)]
enum Slot {
    Empty,
    Node(u32),
    Data(u32),
}

/// The bytes of a database with these networks, none of them within another.
pub(crate) fn write(kind: &str, networks: &[(Subnet, Value)]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut nodes = vec![[Slot::Empty; 2]];
    for (block, value) in networks {
        let at = u32::try_from(data.len()).unwrap();
        encode(value, &mut data);
        let (bits, prefix) = match block.addr() {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), block.prefix() + 96),
            IpAddr::V6(v6) => (v6.to_bits(), block.prefix()),
        };
        let mut node = 0;
        for index in 0..prefix {
            let bit = usize::from((bits >> (127 - index)) & 1 == 1);
            if index + 1 == prefix {
                assert!(nodes[node][bit] == Slot::Empty, "{block} is within another");
                nodes[node][bit] = Slot::Data(at);
                break;
            }
            node = match nodes[node][bit] {
                Slot::Node(next) => next as usize,
                Slot::Empty => {
                    nodes.push([Slot::Empty; 2]);
                    let next = nodes.len() - 1;
                    nodes[node][bit] = Slot::Node(u32::try_from(next).unwrap());
                    next
                }
                Slot::Data(_) => panic!("{block} is within another"),
            };
        }
    }
    let count = u32::try_from(nodes.len()).unwrap();
    let mut out = Vec::new();
    for slot in nodes.iter().flatten() {
        let number = match slot {
            Slot::Empty => count,
            Slot::Node(node) => *node,
            Slot::Data(at) => count + 16 + at,
        };
        out.extend(number.to_be_bytes());
    }
    out.extend([0; 16]);
    out.extend(data);
    out.extend(b"\xab\xcd\xefMaxMind.com");
    let number = |number| Value::Uint(number);
    let metadata = [
        ("binary_format_major_version", number(2)),
        ("binary_format_minor_version", number(0)),
        ("build_epoch", number(1_700_000_000)),
        ("database_type", Value::Text(kind.to_owned())),
        ("description", Value::Map(vec![("en".to_owned(), Value::Text("a test".to_owned()))])),
        ("ip_version", number(6)),
        ("languages", Value::Array(Vec::new())),
        ("node_count", number(count)),
        ("record_size", number(32)),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).to_vec();
    encode(&Value::Map(metadata), &mut out);
    out
}

/// The control byte says the type in its upper three bits and the size in the others.
fn control(kind: u8, size: usize, out: &mut Vec<u8>) {
    let size_bits = u8::try_from(size.min(29)).unwrap();
    if kind <= 7 {
        out.push(kind << 5 | size_bits);
    } else {
        out.extend([size_bits, kind - 7]);
    }
    if size >= 29 {
        out.push(u8::try_from(size - 29).unwrap());
    }
}

fn encode(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Text(text) => {
            control(2, text.len(), out);
            out.extend(text.as_bytes());
        }
        Value::Double(number) => {
            control(3, 8, out);
            out.extend(number.to_be_bytes());
        }
        Value::Uint(number) => {
            control(6, 4, out);
            out.extend(number.to_be_bytes());
        }
        Value::Map(entries) => {
            control(7, entries.len(), out);
            for (key, value) in entries {
                encode(&Value::Text(key.clone()), out);
                encode(value, out);
            }
        }
        Value::Array(values) => {
            control(11, values.len(), out);
            values.iter().for_each(|value| encode(value, out));
        }
    }
}
