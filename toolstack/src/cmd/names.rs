//! `xlr domid`, `xlr domname`.

use super::first;
use crate::args::Args;
use crate::domains;
use crate::failure::Failure;
use crate::host::Host;
use anyhow::Result;

/// `xlr domid`
pub fn domid(args: &Args) -> Result<()> {
    let name = first(args);
    if name == "Domain-0" {
        say!("0");
        return Ok(());
    }
    let survey = Host::open()?.survey()?;
    let domain = survey.living.iter().rev().find(|domain| domain.status.name == name).ok_or_else(|| {
        let what = format!("Can't get domid of domain name '{name}', maybe this domain does not exist.");
        Failure::error(1, what)
    })?;
    say!("{}", domain.dir.domid);
    Ok(())
}

/// `xlr domname`
pub fn domname(args: &Args) -> Result<()> {
    let word = first(args);
    if word == "0" {
        say!("Domain-0");
        return Ok(());
    }
    let domid: u16 =
        word.parse().map_err(|_| Failure::error(1, format!("Invalid domain id {word}: a number")))?;
    let survey = Host::open()?.survey()?;
    let domain = survey.living.iter().find(|d| domains::names(word, &d.status)).ok_or_else(|| {
        let what = format!("Can't get domain name of domain id '{domid}', maybe this domain does not exist.");
        Failure::error(1, what)
    })?;
    say!("{}", domain.status.name);
    Ok(())
}
