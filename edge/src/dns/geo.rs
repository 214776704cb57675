//! Places on the globe and how far apart they are.
//!
//! [`super::atlas`] says where clients are, [`super::route`] how far edges are from there. Nothing
//! here reads a file but [`database`], and nothing knows of names or packets.

pub(super) mod countries;
pub mod database;
pub(super) mod gazetteer;
pub(super) mod registries;

use serde::{Deserialize, Serialize};

/// Mean radius of the earth in kilometres (IUGG).
const EARTH_KM: f32 = 6371.0;
/// A degree in the unit that [`LatLon`] keeps.
const MICRO: f64 = 1e6;

/// A latitude and a longitude as an operator writes them: `[50.1, 8.7]`, degrees, north and east
/// positive. Kept in millionths of a degree, so that configurations can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "[f64; 2]", into = "[f64; 2]")]
pub struct LatLon {
    lat_udeg: i32,
    lon_udeg: i32,
}

/// Numbers that are no place.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error(
    "[{lat}, {lon}] is no place: latitude is from -90 to 90, longitude from -180 to 180 degrees"
)]
pub struct BadPlace {
    lat: f64,
    lon: f64,
}

impl LatLon {
    /// From degrees, north and east positive.
    ///
    /// # Errors
    /// When there is no such place.
    pub fn new(lat: f64, lon: f64) -> Result<LatLon, BadPlace> {
        // Also refuses what is not a number.
        if !((-90.0..=90.0).contains(&lat) && (-180.0..=180.0).contains(&lon)) {
            return Err(BadPlace { lat, lon });
        }
        let micro = |degrees: f64| (degrees * MICRO).round() as i32;
        Ok(LatLon { lat_udeg: micro(lat), lon_udeg: micro(lon) })
    }

    /// From whole degrees of the built-in tables.
    pub(super) const fn whole(lat: i8, lon: i16) -> LatLon {
        LatLon { lat_udeg: lat as i32 * 1_000_000, lon_udeg: lon as i32 * 1_000_000 }
    }

    /// Latitude in degrees.
    pub fn lat(self) -> f64 {
        f64::from(self.lat_udeg) / MICRO
    }

    /// Longitude in degrees.
    pub fn lon(self) -> f64 {
        f64::from(self.lon_udeg) / MICRO
    }

    /// Latitude and longitude in millionths of a degree.
    pub fn micro_degrees(self) -> (i32, i32) {
        (self.lat_udeg, self.lon_udeg)
    }

    /// The nearest point of a grid of half degrees (at most 55 km away): databases hold hundreds
    /// of thousands of places, and which edge is near does not hang on less.
    pub(super) fn coarse(self) -> LatLon {
        const HALF: i32 = 500_000;
        let nearest = |udeg: i32| (udeg + udeg.signum() * HALF / 2) / HALF * HALF;
        LatLon { lat_udeg: nearest(self.lat_udeg), lon_udeg: nearest(self.lon_udeg) }
    }

    /// The same place as a direction from the centre of the earth.
    pub(super) fn direction(self) -> Direction {
        let (lat, lon) = (self.lat().to_radians(), self.lon().to_radians());
        let xyz = [lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()];
        Direction(xyz.map(|part| part as f32))
    }
}

impl TryFrom<[f64; 2]> for LatLon {
    type Error = BadPlace;

    fn try_from([lat, lon]: [f64; 2]) -> Result<LatLon, BadPlace> {
        LatLon::new(lat, lon)
    }
}

impl From<LatLon> for [f64; 2] {
    fn from(place: LatLon) -> [f64; 2] {
        [place.lat(), place.lon()]
    }
}

/// A unit vector: what distances are computed from by the million.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Direction([f32; 3]);

impl Direction {
    /// Along the surface of the earth. Exact to some kilometres, which is all that is needed.
    pub(super) fn km_to(self, other: Direction) -> f32 {
        let apart: f32 = self.0.iter().zip(other.0).map(|(a, b)| (a - b) * (a - b)).sum();
        // The chord of a unit sphere; never longer than its diameter but for rounding.
        2.0 * (apart.sqrt() / 2.0).min(1.0).asin() * EARTH_KM
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn distances_are_those_of_an_atlas() {
        let place = |lat, lon| LatLon::new(lat, lon).unwrap().direction();
        for (from, to, km) in [
            (place(50.11, 8.68), place(48.86, 2.35), 479.0),
            (place(40.71, -74.01), place(51.51, -0.13), 5570.0),
            (place(-33.87, 151.21), place(35.68, 139.69), 7827.0),
            (place(0.0, 179.0), place(0.0, -179.0), 222.0),
            (place(90.0, 0.0), place(-90.0, 0.0), 20015.0),
            (place(50.0, 8.0), place(50.0, 8.0), 0.0),
        ] {
            assert!((from.km_to(to) - km).abs() < 15.0, "{} for {km}", from.km_to(to));
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for (lat, lon) in [(91.0, 0.0), (0.0, 180.5), (f64::NAN, 0.0), (0.0, f64::INFINITY)] {
            assert!(LatLon::new(lat, lon).unwrap_err().to_string().contains("no place"));
        }
        let place = LatLon::new(50.24, -8.76).unwrap();
        assert_eq!(<[f64; 2]>::from(place), [50.24, -8.76]);
        assert_eq!(<[f64; 2]>::from(place.coarse()), [50.0, -9.0]);
    }
}
