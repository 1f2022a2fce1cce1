//! The names under which an address was found.

use std::sync::Arc;

use crate::name::canonical_name;

/// All names that led to an address. Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names(Vec<Arc<Lookup>>);

/// Of one lookup, in canonical form.
#[derive(Debug, PartialEq, Eq)]
struct Lookup {
    asked: String,
    /// The name as the search list of this host completed it.
    completed: Option<String>,
    /// Aliases in the answers (CNAME): the owner of the zone of one chooses the next.
    aliases: Vec<String>,
}

impl Names {
    /// A name, as it was asked for and as it was looked up, and its aliases.
    #[must_use]
    pub fn new(asked: &str, looked_up: &str, aliases: &[String]) -> Self {
        let (asked, looked_up) = (canonical_name(asked), canonical_name(looked_up));
        let aliases = aliases.iter().map(|alias| canonical_name(alias)).collect();
        let completed = (looked_up != asked).then_some(looked_up);
        Self(vec![Arc::new(Lookup { asked, completed, aliases })])
    }

    /// A name that was looked up as it was asked for, and that has no aliases.
    #[must_use]
    pub fn of(asked: &str) -> Self {
        Self::new(asked, asked, &[])
    }

    /// The address was found under these too.
    pub fn add(&mut self, others: &Self) {
        for lookup in &others.0 {
            if !self.0.contains(lookup) {
                self.0.push(Arc::clone(lookup));
            }
        }
    }

    /// The name that was asked for last.
    pub(super) fn last(&self) -> Option<&str> {
        self.0.last().map(|lookup| lookup.asked.as_str())
    }

    /// Names that the caller or the operator has chosen: as asked for, and as completed.
    pub(super) fn chosen(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|lookup| std::iter::once(&lookup.asked).chain(&lookup.completed)).map(String::as_str)
    }

    /// Names that were passed on the way from those to the address.
    pub(super) fn passed(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|lookup| lookup.completed.iter().chain(&lookup.aliases)).map(String::as_str)
    }
}
