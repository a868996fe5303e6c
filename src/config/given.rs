//! What was given, before it is read as settings: a file, variables over it, flags over them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::names::{self, Below};
use super::variables::{self, Variable};
use super::{ConfigError, Faults};

/// Settings whose values may hold a password or a key, and are never shown.
const SECRET: [&str; 3] = ["database_url", "urls", "ws_url"];

/// What was given.
#[derive(Debug, Default)]
pub(super) struct Given {
    table: Table,
    /// The variable or flag that said what stands at a path; the others are the file's.
    origins: BTreeMap<Vec<String>, String>,
    /// The file that was read.
    pub(super) file: Option<PathBuf>,
    /// What was wrong with variables that are no settings, a sentence each.
    pub(super) unknown_variables: Vec<String>,
}

impl Given {
    /// The file named, or `ebbtide.toml` if there is one here, with the variables laid over it.
    ///
    /// # Errors
    /// A file that cannot be read, or is no TOML.
    pub(super) fn read(named: Option<&Path>) -> Result<Given, ConfigError> {
        let path = named.unwrap_or(Path::new("ebbtide.toml"));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => None,
            Err(error) => {
                return Err(ConfigError::Unreadable { path: path.to_owned(), reason: error.to_string() });
            }
        };
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())));
        let mut given = Given::parse(text.as_deref().unwrap_or_default(), path, variables)?;
        given.file = text.map(|_| path.to_owned());
        Ok(given)
    }

    pub(super) fn parse(
        text: &str,
        path: &Path,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Given, ConfigError> {
        // Not the error's own text: that shows the line, which may hold a password.
        let table = toml::from_str(text).map_err(|error: toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            ConfigError::Malformed {
                origin: format!("{}, line {line}", path.display()),
                reason: error.message().to_owned(),
            }
        })?;
        let file = Some(path.to_owned());
        let mut given = Given { table, file, ..Given::default() };
        let mut variables: Vec<_> = variables.collect();
        variables.sort();
        for (name, value) in variables {
            match variables::read(&name, &value) {
                Variable::Setting(path, value) => {
                    let path = given.as_spelled(path);
                    given.lay_over(&name, &path, value);
                }
                Variable::Unknown { nearest } => given.unknown_variables.push(format!(
                    "the variable {name} is no setting and is ignored; the nearest one is EBBTIDE_{nearest}"
                )),
                Variable::Elsewhere => {}
            }
        }
        Ok(given)
    }

    /// A variable's path with the names of chains and projections as they are spelled in the file: variables are matched in
    /// any case.
    fn as_spelled(&self, mut path: Vec<String>) -> Vec<String> {
        let mut at = Some(&self.table);
        for part in &mut path {
            let key = at.and_then(|table| table.keys().find(|key| key.to_lowercase() == *part));
            if let Some(key) = key {
                part.clone_from(key);
            }
            at = at.and_then(|table| table.get(part)?.as_table());
        }
        path
    }

    /// Puts a value in place of what stands there.
    pub(super) fn lay_over<S: AsRef<str>>(&mut self, origin: &str, path: &[S], value: Value) {
        let path: Vec<String> = path.iter().map(|part| part.as_ref().to_owned()).collect();
        let Some((last, parents)) = path.split_last() else { return };
        let mut at = &mut self.table;
        for part in parents {
            match at.entry(part).or_insert_with(|| Value::Table(Table::new())) {
                Value::Table(inner) => at = inner,
                // A value where a table belongs: a fault of the file, which is named when that is read.
                _ => return,
            }
        }
        at.insert(last.clone(), value);
        self.origins.insert(path, origin.to_owned());
    }

    /// What stands at a path.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Value> {
        let (last, parents) = path.split_last()?;
        let parent = parents.iter().try_fold(&self.table, |table, part| table.get(*part)?.as_table())?;
        parent.get(*last)
    }

    /// Whether the file says what stands at a path.
    pub(super) fn is_of_the_file(&self, path: &[&str]) -> bool {
        self.at(path).is_some() && self.origin(path).is_none()
    }

    /// The variable or flag that says what stands at a path; none where it is the file.
    pub(super) fn origin(&self, path: &[&str]) -> Option<&str> {
        self.origins.iter().find(|(known, _)| *known == path).map(|(_, origin)| origin.as_str())
    }

    /// How errors call a setting: by its variable or flag, else by its place in the file.
    pub(super) fn name(&self, path: &[&str]) -> String {
        if let Some(origin) = self.origin(path) {
            return origin.to_owned();
        }
        let Some((last, parents)) = path.split_last() else { return String::new() };
        let file = self.file.as_deref().unwrap_or(Path::new("ebbtide.toml")).display();
        let table = if parents.is_empty() { String::new() } else { format!("[{}] ", parents.join(".")) };
        format!("{file}: {table}{last}")
    }

    /// Takes out what is no setting, each a fault.
    pub(super) fn take_unknown(&mut self, faults: &mut Faults) {
        let mut unknown = Vec::new();
        let mut table = std::mem::take(&mut self.table);
        take_unknown(&mut table, &mut Vec::new(), &mut unknown);
        self.table = table;
        for path in unknown {
            let parts: Vec<&str> = path.iter().map(String::as_str).collect();
            let nearest = names::nearest(&path, &[]).to_lowercase();
            let nearest = nearest.replace("__", ".");
            faults
                .push(ConfigError::Unfit(format!("{} is no setting; the nearest one is {nearest}", self.name(&parts))));
        }
    }

    /// Reads the table at a path. What cannot be read is left out, each a fault.
    pub(super) fn read_as<T: DeserializeOwned>(&self, path: &[&str], table: &Table, faults: &mut Faults) -> Option<T> {
        let mut readable = table.clone();
        readable.retain(|key, value| {
            let alone = Table::from_iter([(key.to_owned(), value.clone())]);
            let Err(error) = T::deserialize(Value::Table(alone)) else { return true };
            let mut reason = error.message().to_owned();
            // The text that does not fit may be a URL with a key in it.
            if SECRET.contains(&key) {
                reason =
                    reason.rsplit_once(", ").map_or_else(|| "it does not fit".to_owned(), |(_, end)| end.to_owned());
            }
            let origin = self.name(&[path, &[key]].concat());
            faults.push(ConfigError::Malformed { origin, reason });
            false
        });
        T::deserialize(Value::Table(readable)).ok()
    }

    /// All of it.
    pub(super) fn table(&self) -> &Table {
        &self.table
    }
}

fn take_unknown(table: &mut Table, at: &mut Vec<String>, unknown: &mut Vec<Vec<String>>) {
    let below = names::below(at);
    table.retain(|key, value| {
        at.push(key.to_owned());
        let known = match &below {
            Below::Settings(names) => names.contains(&key),
            Below::Names => true,
            Below::Nothing => false,
        };
        if !known {
            unknown.push(at.clone());
        } else if let Value::Table(inner) = value
            && !matches!(names::below(at), Below::Nothing)
        {
            take_unknown(inner, at, unknown);
        }
        at.pop();
        known
    });
}

/// Puts something harmless in place of what may hold a password or a key.
pub(super) fn without_secrets(table: &mut Table) {
    fn hide(value: &mut Value) {
        match value {
            Value::String(text) => *text = crate::sources::net::http::redacted(text),
            Value::Array(all) => all.iter_mut().for_each(hide),
            _ => {}
        }
    }
    for (key, value) in table.iter_mut() {
        match value {
            value if SECRET.contains(&key.as_str()) => hide(value),
            Value::Table(inner) => without_secrets(inner),
            _ => {}
        }
    }
}
