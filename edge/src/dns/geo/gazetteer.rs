//! Where regions are that operators do not place themselves: continents, compass directions,
//! countries and the airport codes that operators of networks name places by.

use super::{LatLon, countries};

/// Lower case, sorted by kind. Continents come before countries with the same two letters.
const NAMES: &[(&str, LatLon)] = &[
    ("africa", LatLon::whole(5, 20)),
    ("af", LatLon::whole(5, 20)),
    ("af-south", LatLon::whole(-34, 18)),
    ("antarctica", LatLon::whole(-75, 0)),
    ("ap", LatLon::whole(22, 114)),
    ("ap-east", LatLon::whole(22, 114)),
    ("ap-northeast", LatLon::whole(36, 140)),
    ("ap-south", LatLon::whole(19, 73)),
    ("ap-southeast", LatLon::whole(1, 104)),
    ("apac", LatLon::whole(22, 114)),
    ("as", LatLon::whole(22, 114)),
    ("asia", LatLon::whole(22, 114)),
    ("asia-east", LatLon::whole(25, 121)),
    ("asia-northeast", LatLon::whole(36, 140)),
    ("asia-south", LatLon::whole(19, 73)),
    ("asia-southeast", LatLon::whole(1, 104)),
    ("australia", LatLon::whole(-34, 151)),
    ("ca-central", LatLon::whole(45, -74)),
    ("canada", LatLon::whole(44, -79)),
    ("china", LatLon::whole(31, 121)),
    ("emea", LatLon::whole(50, 9)),
    ("eu", LatLon::whole(50, 9)),
    ("eu-central", LatLon::whole(50, 9)),
    ("eu-east", LatLon::whole(52, 21)),
    ("eu-north", LatLon::whole(59, 18)),
    ("eu-south", LatLon::whole(45, 9)),
    ("eu-west", LatLon::whole(53, -6)),
    ("europe", LatLon::whole(50, 9)),
    ("europe-central", LatLon::whole(52, 21)),
    ("europe-north", LatLon::whole(60, 27)),
    ("europe-west", LatLon::whole(50, 4)),
    ("india", LatLon::whole(19, 73)),
    ("japan", LatLon::whole(36, 140)),
    ("latam", LatLon::whole(-23, -47)),
    ("me", LatLon::whole(26, 51)),
    ("me-central", LatLon::whole(25, 55)),
    ("me-south", LatLon::whole(26, 51)),
    ("middle-east", LatLon::whole(26, 51)),
    ("na", LatLon::whole(39, -90)),
    ("north-america", LatLon::whole(39, -90)),
    ("oc", LatLon::whole(-34, 151)),
    ("oceania", LatLon::whole(-34, 151)),
    ("sa", LatLon::whole(-23, -47)),
    ("sa-east", LatLon::whole(-23, -47)),
    ("sa-west", LatLon::whole(-33, -71)),
    ("south-america", LatLon::whole(-23, -47)),
    ("uk", LatLon::whole(52, 0)),
    ("us", LatLon::whole(39, -90)),
    ("us-central", LatLon::whole(41, -96)),
    ("us-east", LatLon::whole(39, -77)),
    ("us-south", LatLon::whole(30, -97)),
    ("us-west", LatLon::whole(38, -122)),
    // Airports.
    ("akl", LatLon::whole(-37, 175)),
    ("ams", LatLon::whole(52, 5)),
    ("arn", LatLon::whole(60, 18)),
    ("ath", LatLon::whole(38, 24)),
    ("atl", LatLon::whole(34, -84)),
    ("bcn", LatLon::whole(41, 2)),
    ("ber", LatLon::whole(52, 14)),
    ("bkk", LatLon::whole(14, 101)),
    ("blr", LatLon::whole(13, 78)),
    ("bog", LatLon::whole(5, -74)),
    ("bom", LatLon::whole(19, 73)),
    ("bos", LatLon::whole(42, -71)),
    ("bru", LatLon::whole(51, 4)),
    ("bud", LatLon::whole(47, 19)),
    ("cai", LatLon::whole(30, 31)),
    ("cdg", LatLon::whole(49, 3)),
    ("cph", LatLon::whole(56, 13)),
    ("cpt", LatLon::whole(-34, 19)),
    ("del", LatLon::whole(29, 77)),
    ("den", LatLon::whole(40, -105)),
    ("dfw", LatLon::whole(33, -97)),
    ("doh", LatLon::whole(25, 52)),
    ("dub", LatLon::whole(53, -6)),
    ("dus", LatLon::whole(51, 7)),
    ("dxb", LatLon::whole(25, 55)),
    ("eze", LatLon::whole(-35, -59)),
    ("fra", LatLon::whole(50, 9)),
    ("gru", LatLon::whole(-23, -46)),
    ("ham", LatLon::whole(54, 10)),
    ("hel", LatLon::whole(60, 25)),
    ("hkg", LatLon::whole(22, 114)),
    ("hnd", LatLon::whole(36, 140)),
    ("iad", LatLon::whole(39, -77)),
    ("icn", LatLon::whole(37, 126)),
    ("ist", LatLon::whole(41, 29)),
    ("jfk", LatLon::whole(41, -74)),
    ("jnb", LatLon::whole(-26, 28)),
    ("kbp", LatLon::whole(50, 31)),
    ("kix", LatLon::whole(34, 135)),
    ("kul", LatLon::whole(3, 102)),
    ("lax", LatLon::whole(34, -118)),
    ("lhr", LatLon::whole(51, 0)),
    ("lim", LatLon::whole(-12, -77)),
    ("lis", LatLon::whole(39, -9)),
    ("lon", LatLon::whole(52, 0)),
    ("los", LatLon::whole(7, 3)),
    ("mad", LatLon::whole(40, -4)),
    ("man", LatLon::whole(53, -2)),
    ("mel", LatLon::whole(-38, 145)),
    ("mex", LatLon::whole(19, -99)),
    ("mia", LatLon::whole(26, -80)),
    ("mnl", LatLon::whole(15, 121)),
    ("mrs", LatLon::whole(43, 5)),
    ("muc", LatLon::whole(48, 12)),
    ("mxp", LatLon::whole(46, 9)),
    ("nbo", LatLon::whole(-1, 37)),
    ("nrt", LatLon::whole(36, 140)),
    ("nyc", LatLon::whole(41, -74)),
    ("ord", LatLon::whole(42, -88)),
    ("osl", LatLon::whole(60, 11)),
    ("otp", LatLon::whole(45, 26)),
    ("par", LatLon::whole(49, 2)),
    ("pdx", LatLon::whole(46, -123)),
    ("per", LatLon::whole(-32, 116)),
    ("phx", LatLon::whole(33, -112)),
    ("prg", LatLon::whole(50, 14)),
    ("scl", LatLon::whole(-33, -71)),
    ("sea", LatLon::whole(47, -122)),
    ("sfo", LatLon::whole(38, -122)),
    ("sin", LatLon::whole(1, 104)),
    ("sjc", LatLon::whole(37, -122)),
    ("sof", LatLon::whole(43, 23)),
    ("sto", LatLon::whole(59, 18)),
    ("syd", LatLon::whole(-34, 151)),
    ("tlv", LatLon::whole(32, 35)),
    ("tpe", LatLon::whole(25, 121)),
    ("vie", LatLon::whole(48, 17)),
    ("waw", LatLon::whole(52, 21)),
    ("yul", LatLon::whole(45, -74)),
    ("yvr", LatLon::whole(49, -123)),
    ("yyz", LatLon::whole(44, -80)),
    ("zrh", LatLon::whole(47, 9)),
];

/// Where a region of this name is. A number at the end does not count: `fra-2`, `us-east-1` and
/// `eu1` are found as `fra`, `us-east` and `eu`.
pub(in crate::dns) fn region(name: &str) -> Option<LatLon> {
    let name = name.to_ascii_lowercase().replace('_', "-");
    let base = name.trim_end_matches(|last: char| last.is_ascii_digit() || last == '-');
    let known = |name: &str| {
        let found = NAMES.iter().find(|(known, _)| *known == name).map(|(_, place)| *place);
        found.or_else(|| countries::country(name))
    };
    known(&name).or_else(|| known(base))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_lead_to_places_and_others_to_none() {
        assert_eq!(region("EU"), region("europe"));
        assert_eq!(region("us-east-1"), region("us_east"));
        assert_eq!(region("fra-2"), region("fra"));
        assert_eq!(region("de"), countries::country("DE"));
        assert_ne!(region("sa"), countries::country("SA"), "the continent, not Saudi Arabia");
        for unknown in ["", "7", "rack", "attic", "eu-", "-"] {
            let found = region(unknown);
            assert_eq!(found.is_some(), unknown == "eu-", "{unknown}");
        }
        for (index, (name, _)) in NAMES.iter().enumerate() {
            assert!(NAMES[..index].iter().all(|(other, _)| other != name), "{name} twice");
        }
    }
}
