//! What the caller wrote, and nothing more: a JSON object of lists of option sets.
//!
//! Limits on names, lists and depth apply while the text is read, before a value is stored: one byte of JSON may take
//! seventy of memory, and everything after this module takes time in proportion to what it gets.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// One option set as it was written.
pub type Options = Map<String, Value>;

/// Characters of the name of a test type or of an option.
pub const NAME_CHARS: usize = 64;
/// Characters of a name inside an option's value, such as that of a header.
pub const INNER_NAME_CHARS: usize = 256;
/// Options of one test.
pub const OPTIONS: usize = 100;
/// Items of one list, and names of one object, inside an option's value.
pub const ITEMS: usize = 1000;
/// Lists and objects inside each other in an option's value.
pub const DEPTH: usize = 8;
/// Values of all kinds in one payload, or [`VALUES_PER_TEST`] for each allowed test when those are more.
const VALUES: usize = 20_000;
const VALUES_PER_TEST: usize = 20;
/// Characters that an error shows of a name.
const SHOWN_CHARS: usize = 100;

/// Types in the order in which they were written, each with its option sets.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload(pub Vec<(String, Vec<Options>)>);

/// The payload has no meaning at all: the caller gets a 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    #[error("Valid request payload not found.")]
    NotAnObject,
    #[error("Provided payload has a name more than once: '{0}'.")]
    Doubled(String),
    #[error("Provided payload has a number that is out of range: line {line}, column {column}.")]
    NumberOutOfRange { line: usize, column: usize },
    #[error("{0}: expected a list of option objects")]
    NotAList(String),
    #[error("{0}: expected an object of options")]
    NotOptions(String),
    #[error("Provided number of tests is too high. Max: {max}")]
    TooManyTests { max: usize },
    #[error("{place}: expected {expected}, got more")]
    OverLimit { place: String, expected: String },
    #[error("{place}: expected names of at most {max} characters, got '{name}'")]
    LongName { place: String, name: String, max: usize },
}

impl Payload {
    /// A type with an empty list counts as one test: it takes a place in the receipt too.
    ///
    /// # Errors
    /// See [`PayloadError`]. Names of types and options that differ only in case count as the same name.
    pub fn parse(body: &[u8], max_tests: usize) -> Result<Self, PayloadError> {
        let reading = Reading {
            max_tests,
            tests: Cell::new(0),
            values_left: Cell::new(VALUES.max(max_tests.saturating_mul(VALUES_PER_TEST))),
            error: RefCell::new(None),
        };
        let mut json = serde_json::Deserializer::from_slice(body);
        let parsed = TypesSeed(&reading).deserialize(&mut json).and_then(|types| json.end().map(|()| types));
        match (parsed, reading.error.into_inner()) {
            (Ok(types), _) => Ok(Self(types)),
            // What is wrong with its form, if it is JSON as far as it was read.
            (Err(error), Some(found)) if error.is_data() => Err(found),
            // The parser has a kind of its own for these, and shows it in its text only.
            (Err(error), _) if error.to_string().starts_with("number out of range") => {
                Err(PayloadError::NumberOutOfRange { line: error.line(), column: error.column() })
            }
            _ => Err(PayloadError::NotAnObject),
        }
    }
}

/// The state of one parse. The error of a visitor is a text only: what it means is put here.
struct Reading {
    max_tests: usize,
    tests: Cell<usize>,
    values_left: Cell<usize>,
    error: RefCell<Option<PayloadError>>,
}

impl Reading {
    /// The error, should the next value not be what is expected there.
    fn expect(&self, otherwise: Option<PayloadError>) {
        *self.error.borrow_mut() = otherwise;
    }

    fn fail<T, E: Error>(&self, error: PayloadError) -> Result<T, E> {
        self.expect(Some(error));
        Err(E::custom("refused"))
    }

    fn over<T, E: Error>(&self, place: &Place, expected: String) -> Result<T, E> {
        self.fail(PayloadError::OverLimit { place: place.to_string(), expected })
    }

    fn count_tests<E: Error>(&self, more: usize) -> Result<(), E> {
        self.tests.set(self.tests.get() + more);
        if self.tests.get() > self.max_tests {
            return self.fail(PayloadError::TooManyTests { max: self.max_tests });
        }
        Ok(())
    }

    fn count_value<E: Error>(&self, place: &Place) -> Result<(), E> {
        let Some(left) = self.values_left.get().checked_sub(1) else {
            let most = VALUES.max(self.max_tests.saturating_mul(VALUES_PER_TEST));
            return self.over(place, format!("at most {most} values in the payload"));
        };
        self.values_left.set(left);
        Ok(())
    }
}

/// Where in the payload: `ping[0].headers`.
enum Place<'a> {
    Payload,
    Name(&'a Self, &'a str),
    Index(&'a Self, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Payload => f.write_str("payload"),
            Self::Name(Self::Payload, name) => f.write_str(name),
            Self::Name(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

fn shown(name: &str) -> String {
    if name.chars().nth(SHOWN_CHARS).is_none() {
        return name.to_owned();
    }
    name.chars().take(SHOWN_CHARS).chain(['…']).collect()
}

/// A name, its length checked before it is stored.
struct NameSeed<'a> {
    reading: &'a Reading,
    place: &'a Place<'a>,
    max: usize,
}

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<String, E> {
        if name.chars().nth(self.max).is_some() {
            let (place, name) = (self.place.to_string(), shown(name));
            return self.reading.fail(PayloadError::LongName { place, name, max: self.max });
        }
        Ok(name.to_owned())
    }
}

/// Names of types, or of options: each once, in whatever case.
#[derive(Default)]
struct Names(HashSet<String>);

impl Names {
    fn add<E: Error>(&mut self, name: &str, reading: &Reading) -> Result<(), E> {
        if self.0.insert(name.to_lowercase()) {
            return Ok(());
        }
        reading.fail(PayloadError::Doubled(shown(name)))
    }
}

struct TypesSeed<'a>(&'a Reading);

impl<'de> DeserializeSeed<'de> for TypesSeed<'_> {
    type Value = Vec<(String, Vec<Options>)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TypesSeed<'_> {
    type Value = Vec<(String, Vec<Options>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of test types")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let (mut types, mut names) = (vec![], Names::default());
        let seed = || NameSeed { reading: self.0, place: &Place::Payload, max: NAME_CHARS };
        while let Some(name) = entries.next_key_seed(seed())? {
            names.add(&name, self.0)?;
            self.0.expect(Some(PayloadError::NotAList(name.clone())));
            let sets = entries.next_value_seed(SetsSeed(self.0, &Place::Name(&Place::Payload, &name)))?;
            types.push((name, sets));
        }
        Ok(types)
    }
}

struct SetsSeed<'a>(&'a Reading, &'a Place<'a>);

impl<'de> DeserializeSeed<'de> for SetsSeed<'_> {
    type Value = Vec<Options>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SetsSeed<'_> {
    type Value = Vec<Options>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of option objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let Self(reading, place) = self;
        let mut sets = vec![];
        loop {
            let place = Place::Index(place, sets.len());
            reading.expect(Some(PayloadError::NotOptions(place.to_string())));
            let Some(options) = items.next_element_seed(OptionsSeed(reading, &place))? else { break };
            sets.push(options);
        }
        if sets.is_empty() {
            reading.count_tests(1)?;
        }
        Ok(sets)
    }
}

struct OptionsSeed<'a>(&'a Reading, &'a Place<'a>);

impl<'de> DeserializeSeed<'de> for OptionsSeed<'_> {
    type Value = Options;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Options, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OptionsSeed<'_> {
    type Value = Options;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of options")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Options, A::Error> {
        let Self(reading, place) = self;
        reading.expect(None);
        reading.count_tests(1)?;
        let (mut options, mut names) = (Map::new(), Names::default());
        while let Some(name) = entries.next_key_seed(NameSeed { reading, place, max: NAME_CHARS })? {
            names.add(&name, reading)?;
            if options.len() == OPTIONS {
                return reading.over(place, format!("at most {OPTIONS} options"));
            }
            let value = ValueSeed { reading, place: &Place::Name(place, &name), depth: 0 };
            let value = entries.next_value_seed(value)?;
            options.insert(name, value);
        }
        Ok(options)
    }
}

/// Any JSON, within the limits.
struct ValueSeed<'a> {
    reading: &'a Reading,
    place: &'a Place<'a>,
    depth: usize,
}

impl ValueSeed<'_> {
    fn count<E: Error>(&self) -> Result<(), E> {
        self.reading.count_value(self.place)
    }

    fn enter<E: Error>(&self) -> Result<(), E> {
        self.count()?;
        if self.depth == DEPTH {
            return self.reading.over(self.place, format!("lists and objects at most {DEPTH} deep"));
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.count().map(|()| value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.count().map(|()| value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.count().map(|()| value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.count().map(|()| value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.count().map(|()| value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.count().map(|()| Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.enter()?;
        let Self { reading, place, depth } = self;
        let mut list = vec![];
        loop {
            let place = Place::Index(place, list.len());
            let seed = ValueSeed { reading, place: &place, depth: depth + 1 };
            let Some(item) = items.next_element_seed(seed)? else { break };
            if list.len() == ITEMS {
                return reading.over(self.place, format!("a list of at most {ITEMS} items"));
            }
            list.push(item);
        }
        list.shrink_to_fit();
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.enter()?;
        let Self { reading, place, depth } = self;
        let mut object = Map::new();
        while let Some(name) = entries.next_key_seed(NameSeed { reading, place, max: INNER_NAME_CHARS })? {
            if object.contains_key(&name) {
                return reading.fail(PayloadError::Doubled(shown(&name)));
            }
            if object.len() == ITEMS {
                return reading.over(place, format!("an object of at most {ITEMS} names"));
            }
            let seed = ValueSeed { reading, place: &Place::Name(place, &name), depth: depth + 1 };
            let value = entries.next_value_seed(seed)?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests;
