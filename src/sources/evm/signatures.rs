//! Several event signatures, so kept that the one a log fits is found at once.

use std::collections::HashMap;

use alloy_primitives::{Address, B256};

use super::signature::Signature;
use crate::sources::SourceError;

/// Signatures of which no two can be meant by one log.
#[derive(Debug, Clone, Default)]
pub(super) struct Signatures {
    by_topic: HashMap<B256, Vec<Signature>>,
    anonymous: Vec<Signature>,
}

impl Signatures {
    /// Adds a signature; one that is there already only adds its contracts.
    ///
    /// # Errors
    /// Permanent, showing the text, when a log could be this event or another one of them.
    pub(super) fn add(&mut self, text: &str, signature: Signature) -> Result<(), SourceError> {
        let same = match signature.topic0 {
            Some(topic0) => self.by_topic.entry(topic0).or_default(),
            None => &mut self.anonymous,
        };
        if same.iter().any(|other| other.clashes(&signature) && !other.reads_as(&signature)) {
            return Err(SourceError::permanent(format!(
                "event {text:?} cannot be told from another event in the settings: they have the same name, types and \
                 number of indexed parameters (anonymous ones: the same number of topics)"
            )));
        }
        let Some(known) = same.iter_mut().find(|other| other.reads_as(&signature)) else {
            same.push(signature);
            return Ok(());
        };
        if known.emitters.is_empty() || signature.emitters.is_empty() {
            // Anybody's, which those that are named are among.
            known.emitters.clear();
        } else {
            known.emitters.extend(signature.emitters);
        }
        Ok(())
    }

    /// The signature that a log with these topics of this contract must fit.
    pub(super) fn named(&self, topics: &[B256], emitter: &Address) -> Option<&Signature> {
        let same = self.by_topic.get(topics.first()?)?;
        same.iter().find(|s| s.topic_count() == topics.len() && s.admits(emitter))
    }

    /// The anonymous signature that a log with so many topics of this contract may fit: nothing in the log says so.
    pub(super) fn anonymous(&self, topics: &[B256], emitter: &Address) -> Option<&Signature> {
        self.anonymous.iter().find(|s| s.topic_count() == topics.len() && s.admits(emitter))
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Signature> {
        self.by_topic.values().flatten().chain(&self.anonymous)
    }
}
