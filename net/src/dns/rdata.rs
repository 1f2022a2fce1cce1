//! Presentation forms of record types that `domain` shows as bytes only (RFC 3597). Data that does not fit its type is
//! left to that form.

use domain::base::Name;
use domain::base::iana::Rtype;

/// None for other types, and for data that does not fit the type.
pub fn presentation(rtype: Rtype, data: &[u8]) -> Option<String> {
    match rtype.to_int() {
        17 => rp(data),
        18 => afsdb(data),
        29 => loc(data),
        // SPF (RFC 7208) is TXT under another number.
        99 => strings(data),
        108 | 109 => eui(data, if rtype.to_int() == 108 { 6 } else { 8 }),
        256 => uri(data),
        _ => None,
    }
}

/// A name without compression, as these types have it, and what follows.
fn name(data: &[u8]) -> Option<(String, &[u8])> {
    let mut end = 0;
    while *data.get(end)? != 0 {
        end += 1 + usize::from(*data.get(end)?);
    }
    let (name, rest) = data.split_at_checked(end + 1)?;
    let name = Name::from_slice(name).ok()?;
    let text = name.to_string();
    Some((if text.ends_with('.') { text } else { format!("{text}.") }, rest))
}

/// RFC 1183, section 2.
fn rp(data: &[u8]) -> Option<String> {
    let (mailbox, rest) = name(data)?;
    let (text, rest) = name(rest)?;
    rest.is_empty().then(|| format!("{mailbox} {text}"))
}

/// RFC 1183, section 1.
fn afsdb(data: &[u8]) -> Option<String> {
    let (subtype, rest) = data.split_first_chunk()?;
    let (host, rest) = name(rest)?;
    rest.is_empty().then(|| format!("{} {host}", u16::from_be_bytes(*subtype)))
}

/// RFC 7553: the target is quoted text without a length.
fn uri(data: &[u8]) -> Option<String> {
    let (priority, rest) = data.split_first_chunk()?;
    let (weight, target) = rest.split_first_chunk()?;
    Some(format!("{} {} {}", u16::from_be_bytes(*priority), u16::from_be_bytes(*weight), quoted(target)))
}

/// RFC 7043.
fn eui(data: &[u8], length: usize) -> Option<String> {
    let text: Vec<String> = data.iter().map(|byte| format!("{byte:02x}")).collect();
    (data.len() == length).then(|| text.join("-"))
}

/// RFC 1035, section 5.1.
fn quoted(text: &[u8]) -> String {
    let escaped: String = text
        .iter()
        .map(|byte| match byte {
            b'"' | b'\\' => format!("\\{}", char::from(*byte)),
            b' '..=b'~' => char::from(*byte).to_string(),
            _ => format!("\\{byte:03}"),
        })
        .collect();
    format!("\"{escaped}\"")
}

fn strings(mut data: &[u8]) -> Option<String> {
    let mut all = vec![];
    while let Some((length, rest)) = data.split_first() {
        let (text, rest) = rest.split_at_checked(usize::from(*length))?;
        all.push(quoted(text));
        data = rest;
    }
    (!all.is_empty()).then(|| all.join(" "))
}

/// RFC 1876, version 0.
fn loc(data: &[u8]) -> Option<String> {
    let [0, size, horizontal, vertical, rest @ ..] = data else { return None };
    let ([latitude, longitude, altitude], []) = rest.as_chunks::<4>() else { return None };
    // Thousandths of an arc second from the equator or the prime meridian, which are 2^31.
    let angle = |bytes: [u8; 4], positive: char, negative: char| {
        let from_middle = i64::from(u32::from_be_bytes(bytes)) - (1 << 31);
        let (ms, half) = (from_middle.abs(), if from_middle < 0 { negative } else { positive });
        format!("{} {} {}.{:03} {half}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
    };
    // Centimetres above 100 km below the ellipsoid.
    let altitude = i64::from(u32::from_be_bytes(*altitude)) - 10_000_000;
    let sign = if altitude < 0 { "-" } else { "" };
    let altitude = format!("{sign}{}.{:02}m", altitude.abs() / 100, altitude.abs() % 100);
    Some(format!(
        "{} {} {altitude} {} {} {}",
        angle(*latitude, 'N', 'S'),
        angle(*longitude, 'E', 'W'),
        metres(*size)?,
        metres(*horizontal)?,
        metres(*vertical)?
    ))
}

/// A digit and a power of ten of centimetres.
fn metres(byte: u8) -> Option<String> {
    let (base, exponent) = (u64::from(byte >> 4), u32::from(byte & 15));
    if base > 9 || exponent > 9 {
        return None;
    }
    let cm = base * 10_u64.pow(exponent);
    Some(if cm.is_multiple_of(100) { format!("{}m", cm / 100) } else { format!("{}.{:02}m", cm / 100, cm % 100) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(rtype: u16, data: &[u8]) -> Option<String> {
        presentation(Rtype::from_int(rtype), data)
    }

    #[test]
    fn data_reads_as_its_rfc_writes_it() {
        let loc = [0, 0x00, 0x16, 0x13, 0x8b, 0x3c, 0xf0, 0x18, 0x81, 0x0c, 0xbc, 0xe0, 0x00, 0x98, 0x95, 0xb8];
        assert_eq!(shown(29, &loc).as_deref(), Some("52 22 23.000 N 4 53 32.000 E -2.00m 0m 10000m 10m"));
        assert_eq!(shown(256, b"\0\x0a\0\x01https://x/\"\xff").as_deref(), Some(r#"10 1 "https://x/\"\255""#));
        assert_eq!(shown(17, b"\x01a\x01b\0\0").as_deref(), Some("a.b. ."));
        assert_eq!(shown(18, b"\0\x01\x01a\0").as_deref(), Some("1 a."));
        assert_eq!(shown(99, b"\x02ab\x01c").as_deref(), Some(r#""ab" "c""#));
        assert_eq!(shown(108, &[0, 1, 2, 3, 4, 255]).as_deref(), Some("00-01-02-03-04-ff"));
    }

    #[test]
    fn what_does_not_fit_stays_bytes() {
        for (rtype, data) in [
            (29, &[1; 16][..]),
            (29, &[0; 15]),
            (17, b"\x05a"),
            (18, b"\0"),
            (99, b"\x05a"),
            (99, b""),
            (108, &[0; 8]),
            (256, b"\0"),
            (1, &[1, 2, 3, 4]),
        ] {
            assert_eq!(shown(rtype, data), None, "{rtype} {data:?}");
        }
    }
}
