//! Contracts that are followed because others named them: on a node of the test's own making, and on a real one.

mod live;
mod made;
mod run;
mod source;
