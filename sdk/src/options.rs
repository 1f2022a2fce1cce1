//! Options that several test types have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bindings::scouter::probe::net;

/// The option `family`: which addresses of a name are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum FamilyOption {
    #[default]
    #[serde(rename = "any")]
    Any,
    #[serde(rename = "4")]
    V4,
    #[serde(rename = "6")]
    V6,
}

impl From<FamilyOption> for net::Family {
    fn from(family: FamilyOption) -> Self {
        match family {
            FamilyOption::Any => Self::Any,
            FamilyOption::V4 => Self::Ipv4,
            FamilyOption::V6 => Self::Ipv6,
        }
    }
}

/// The value of the option `name`. A value outside its range is replaced by the default, with a comment, as in the
/// first version of the API.
pub fn in_range(name: &str, value: u64, default: u32, min: u32, max: u32, comment: &mut Option<String>) -> u32 {
    if let Ok(value) = u32::try_from(value)
        && (min..=max).contains(&value)
    {
        return value;
    }
    add_comment(
        comment,
        &format!("Provided {name} of '{value}' is not allowed. Defaulting to {default}. Min: {min}, Max: {max}."),
    );
    default
}

/// Appends a sentence to a comment.
pub fn add_comment(comment: &mut Option<String>, text: &str) {
    match comment {
        Some(all) => {
            all.push(' ');
            all.push_str(text);
        }
        None => *comment = Some(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_outside_its_range_is_replaced_with_a_comment() {
        let mut comment = None;
        for value in [1, 20] {
            assert_eq!(u64::from(in_range("count", value, 10, 1, 20, &mut comment)), value);
        }
        assert_eq!(comment, None);
        for value in [0, 21, u64::MAX] {
            let mut comment = Some("Before.".into());
            assert_eq!(in_range("count", value, 10, 1, 20, &mut comment), 10);
            let text =
                format!("Before. Provided count of '{value}' is not allowed. Defaulting to 10. Min: 1, Max: 20.");
            assert_eq!(comment, Some(text));
        }
    }

    #[test]
    fn families_have_the_names_of_the_api() {
        for (name, family) in [("any", net::Family::Any), ("4", net::Family::Ipv4), ("6", net::Family::Ipv6)] {
            let option: Result<FamilyOption, _> = serde_json::from_value(name.into());
            assert_eq!(option.ok().map(net::Family::from), Some(family));
        }
        assert_eq!(net::Family::from(FamilyOption::default()), net::Family::Any);
    }
}
