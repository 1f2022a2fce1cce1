//! Options that several test types share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::bindings::scouter::probe::net;

/// Which addresses of a name are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Family {
    #[default]
    #[serde(rename = "any")]
    Any,
    #[serde(rename = "4")]
    V4,
    #[serde(rename = "6")]
    V6,
}

impl From<Family> for net::Family {
    fn from(family: Family) -> Self {
        match family {
            Family::Any => Self::Any,
            Family::V4 => Self::Ipv4,
            Family::V6 => Self::Ipv6,
        }
    }
}

/// A value outside its range is replaced by the default, and a comment says so: what the first version of the API did
/// for `count` and its like. `name` is the option's.
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

/// One comment after another.
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
    fn a_value_out_of_range_is_replaced_and_said_so() {
        let mut comment = None;
        assert_eq!(in_range("count", 20, 10, 1, 20, &mut comment), 20);
        assert_eq!(comment, None);
        assert_eq!(in_range("count", 21, 10, 1, 20, &mut comment), 10);
        let text = "Provided count of '21' is not allowed. Defaulting to 10. Min: 1, Max: 20.";
        assert_eq!(comment.as_deref(), Some(text));
    }
}
