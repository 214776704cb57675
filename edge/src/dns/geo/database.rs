//! Geographic databases in MaxMind's format (MMDB), read whole: every network and what is said of
//! it.
//!
//! Two layouts are in use. MaxMind nests (`location.latitude`, `country.iso_code`,
//! `continent.code`, `autonomous_system_number`); others write flat records (`latitude` or `lat`,
//! `country_code` or `country`, `asn`), numbers as numbers or as text. Both are understood, key by
//! key. The only file that knows the library.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use maxminddb::{MaxMindDbError, Reader, WithinOptions};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::LatLon;
use crate::dns::subnet::Subnet;

/// Largest database that is read, in bytes. The largest that are sold have some 500 MiB.
const FILE_BYTES_MAX: u64 = 2 << 30;
/// Most networks that are read.
const NETWORKS_MAX: usize = 20_000_000;
/// How deep keys of interest lie.
const DEPTH_MAX: usize = 2;

/// What a database says of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Where, if it is known as a point.
    pub place: Option<LatLon>,
    /// ISO 3166-1 alpha-2, upper case.
    pub country: Option<[u8; 2]>,
    /// `AF`, `AN`, `AS`, `EU`, `NA`, `OC` or `SA`.
    pub continent: Option<[u8; 2]>,
    /// Number of the autonomous system.
    pub asn: Option<u32>,
}

/// A database that was read: networks in ascending order, none within another.
#[derive(Clone, Debug, Default)]
pub struct Database {
    /// What each network's index leads to; far fewer than networks.
    pub facts: Vec<Facts>,
    /// A network and the index of what is said of it.
    pub networks: Vec<(Subnet, u32)>,
    /// What the database calls itself.
    pub kind: String,
    /// When it was made, seconds since the Unix epoch.
    pub built_secs: u64,
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("geographic database {}: {reason}", path.display())]
pub struct DatabaseError {
    path: PathBuf,
    reason: String,
}

impl Database {
    /// Reads a database. Blocking, and slow for a large one.
    ///
    /// # Errors
    /// When it cannot be read, is no such database, or is damaged.
    pub fn read(path: &Path) -> Result<Database, DatabaseError> {
        let failed = |reason: String| DatabaseError { path: path.to_owned(), reason };
        let bytes = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(failed(format!("{bytes} bytes are more than {FILE_BYTES_MAX}")));
        }
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        Database::of_bytes(bytes).map_err(failed)
    }

    /// Reads a database out of memory.
    ///
    /// # Errors
    /// With the reason.
    pub fn of_bytes(bytes: Vec<u8>) -> Result<Database, String> {
        let text = |error: MaxMindDbError| error.to_string();
        let reader = Reader::from_source(bytes).map_err(text)?;
        let metadata = reader.metadata();
        let mut database = Database {
            kind: metadata.database_type.to_string(),
            built_secs: metadata.build_epoch,
            ..Database::default()
        };
        // Records are shared: each is read once, however many networks point to it.
        let mut known: HashMap<usize, u32> = HashMap::new();
        for found in reader.networks(WithinOptions::default()).map_err(text)? {
            let found = found.map_err(text)?;
            let network = found.network().map_err(text)?;
            let Some(offset) = found.offset() else { continue };
            let index = match known.get(&offset) {
                Some(index) => *index,
                None => {
                    let record: Option<Record> = found.decode().map_err(text)?;
                    let index = u32::try_from(database.facts.len())
                        .map_err(|_| "too many different records".to_owned())?;
                    database.facts.push(record.map(Record::facts).unwrap_or_default());
                    known.insert(offset, index);
                    index
                }
            };
            if database.networks.len() == NETWORKS_MAX {
                return Err(format!("more than {NETWORKS_MAX} networks"));
            }
            database.networks.push((Subnet::of(network.ip(), network.prefix()), index));
        }
        Ok(database)
    }
}

/// The keys of interest of one record, by their path: `location.latitude`.
#[derive(Default)]
struct Record {
    scalars: Vec<(String, Scalar)>,
}

enum Scalar {
    Number(f64),
    Text(String),
}

impl Record {
    fn get(&self, keys: &[&str]) -> Option<&Scalar> {
        keys.iter().find_map(|key| {
            self.scalars.iter().find(|(known, _)| known == key).map(|(_, value)| value)
        })
    }

    fn number(&self, keys: &[&str]) -> Option<f64> {
        match self.get(keys)? {
            Scalar::Number(number) => Some(*number),
            Scalar::Text(text) => text.trim().parse().ok(),
        }
    }

    /// Two letters, in upper case.
    fn code(&self, keys: &[&str]) -> Option<[u8; 2]> {
        let Scalar::Text(text) = self.get(keys)? else { return None };
        let code: [u8; 2] = text.to_ascii_uppercase().as_bytes().try_into().ok()?;
        code.iter().all(u8::is_ascii_uppercase).then_some(code)
    }

    fn asn(&self) -> Option<u32> {
        let keys =
            ["autonomous_system_number", "asn", "as_number", "traits.autonomous_system_number"];
        let number = match self.get(&keys)? {
            Scalar::Number(number) => *number,
            Scalar::Text(text) => text.trim_start_matches(['A', 'S', 'a', 's']).parse().ok()?,
        };
        let whole = (0.0..=f64::from(u32::MAX)).contains(&number);
        whole.then_some(number as u32)
    }

    fn facts(self) -> Facts {
        let lat = self.number(&["location.latitude", "latitude", "lat", "location.lat"]);
        let lon = self.number(&[
            "location.longitude",
            "longitude",
            "lng",
            "lon",
            "location.lng",
            "location.lon",
        ]);
        let place = lat.zip(lon).and_then(|(lat, lon)| LatLon::new(lat, lon).ok());
        // 0°, 0° is how some databases say that they do not know.
        let place = place.filter(|place| (place.lat(), place.lon()) != (0.0, 0.0));
        Facts {
            place,
            country: self.code(&[
                "country.iso_code",
                "country_code",
                "country",
                "registered_country.iso_code",
            ]),
            continent: self.code(&["continent.code", "continent_code", "continent"]),
            asn: self.asn(),
        }
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Record, D::Error> {
        let mut record = Record::default();
        deserializer.deserialize_any(Collect {
            record: &mut record,
            path: String::new(),
            depth: 0,
        })?;
        Ok(record)
    }
}

/// Walks into maps as deep as keys of interest lie, and keeps numbers and short texts.
struct Collect<'r> {
    record: &'r mut Record,
    path: String,
    depth: usize,
}

impl Collect<'_> {
    fn keep(self, value: Scalar) {
        self.record.scalars.push((self.path, value));
    }
}

impl<'de> serde::de::DeserializeSeed<'de> for Collect<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Collect<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a record of a geographic database")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if self.depth == DEPTH_MAX {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        }
        while let Some(key) = map.next_key::<String>()? {
            // Names in many languages: nothing in them is of interest.
            if key == "names" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let path = if self.path.is_empty() { key } else { format!("{}.{key}", self.path) };
            map.next_value_seed(Collect { record: self.record, path, depth: self.depth + 1 })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        if text.len() <= 32 {
            self.keep(Scalar::Text(text.to_owned()));
        }
        Ok(())
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        self.keep(Scalar::Number(number));
        Ok(())
    }

    fn visit_f32<E>(self, number: f32) -> Result<(), E> {
        self.keep(Scalar::Number(f64::from(number)));
        Ok(())
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        // Numbers of interest fit; a larger one is none.
        if let Ok(number) = u32::try_from(number) {
            self.keep(Scalar::Number(f64::from(number)));
        }
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        if let Ok(number) = i32::try_from(number) {
            self.keep(Scalar::Number(f64::from(number)));
        }
        Ok(())
    }

    fn visit_i32<E>(self, number: i32) -> Result<(), E> {
        self.keep(Scalar::Number(f64::from(number)));
        Ok(())
    }

    fn visit_u128<E>(self, _number: u128) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _value: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_bytes<E>(self, _bytes: &[u8]) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::dns::mmdb_tests::{Value, write};

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn map(entries: Vec<(&str, Value)>) -> Value {
        Value::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    #[test]
    fn both_layouts_are_understood() {
        let nested = map(vec![
            ("continent", map(vec![("code", text("EU"))])),
            (
                "country",
                map(vec![("iso_code", text("DE")), ("names", map(vec![("en", text("Germany"))]))]),
            ),
            (
                "location",
                map(vec![("latitude", Value::Double(50.1)), ("longitude", Value::Double(8.7))]),
            ),
            ("autonomous_system_number", Value::Uint(64500)),
        ]);
        let flat = map(vec![
            ("continent_code", text("NA")),
            ("country_code", text("us")),
            ("latitude", text("37.4")),
            ("longitude", text("-122.1")),
            ("asn", text("AS64501")),
        ]);
        let odd = map(vec![
            ("country", text("Germany")),
            ("lat", Value::Double(0.0)),
            ("lng", Value::Double(0.0)),
            ("asn", Value::Double(-3.0)),
            ("list", Value::Array(vec![text("x")])),
        ]);
        let networks = [
            ("1.2.0.0/16", nested.clone()),
            ("5.0.0.0/9", flat),
            ("5.128.0.0/24", nested),
            ("9.0.0.0/8", odd),
            ("2a00:db8::/33", text("no map")),
        ];
        let networks = networks.map(|(block, value)| (block.parse().unwrap(), value));
        let database = Database::of_bytes(write("Test-City", &networks)).unwrap();
        assert_eq!(database.kind, "Test-City");
        let blocks: Vec<String> =
            database.networks.iter().map(|(block, _)| block.to_string()).collect();
        assert_eq!(
            blocks,
            ["1.2.0.0/16", "5.0.0.0/9", "5.128.0.0/24", "9.0.0.0/8", "2a00:db8::/33"]
        );
        let facts = |index: usize| database.facts[database.networks[index].1 as usize];
        let german = Facts {
            place: Some(LatLon::new(50.1, 8.7).unwrap()),
            country: Some(*b"DE"),
            continent: Some(*b"EU"),
            asn: Some(64500),
        };
        assert_eq!((facts(0), facts(2)), (german, german));
        let american = Facts {
            place: Some(LatLon::new(37.4, -122.1).unwrap()),
            country: Some(*b"US"),
            continent: Some(*b"NA"),
            asn: Some(64501),
        };
        assert_eq!(facts(1), american);
        assert_eq!((facts(3), facts(4)), (Facts::default(), Facts::default()));
    }

    #[test]
    fn what_is_no_database_is_refused_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("geo.mmdb");
        let error = Database::read(&path).unwrap_err().to_string();
        assert!(error.contains("geo.mmdb") && error.contains("No such file"), "{error}");
        std::fs::write(&path, b"nonsense").unwrap();
        assert!(Database::read(&path).unwrap_err().to_string().contains("geo.mmdb"));
        let whole = write("T", &[("1.0.0.0/8".parse().unwrap(), text("x"))]);
        for length in 0..whole.len() {
            // A part of one is refused or read, and nothing worse.
            drop(Database::of_bytes(whole[..length].to_vec()));
        }
    }
}
