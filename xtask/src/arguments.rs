//! The options of a command: flags, and names with a value.

use crate::run::Failure;

/// The arguments that follow the name of a command.
pub(crate) struct Arguments<'a>(core::slice::Iter<'a, &'a str>);

impl<'a> Arguments<'a> {
    pub(crate) fn new(arguments: &'a [&'a str]) -> Self {
        Self(arguments.iter())
    }

    /// The name of the next option.
    pub(crate) fn next_name(&mut self) -> Option<&'a str> {
        self.0.next().copied()
    }

    /// The value of the option `name`, whose name was the last argument.
    ///
    /// # Errors
    /// When there is no further argument.
    pub(crate) fn value(&mut self, name: &str) -> Result<&'a str, Failure> {
        let value = self.0.next().copied();
        value.ok_or_else(|| Failure::new(format!("{name} needs a value; see --help")))
    }
}

/// The error for an option that the command doesn't have.
pub(crate) fn unknown_option(name: &str) -> Failure {
    Failure::new(format!("unknown option {name:?}; see --help"))
}
