//! `channel=`: xl.cfg(5).

use super::Placed;
use super::params::{Form, Params};
use crate::xlcfg::Diag;
use std::path::PathBuf;
use xen_emu_api::device::{ChannelConfig, ChannelConnection, Device};

/// Every parameter.
const KEYS: &[(&str, Form)] =
    &[("connection", Form::Value), ("name", Form::Value), ("path", Form::Value), ("backend", Form::Value)];

/// `sun_path` of unix(7) without its NUL.
const SOCKET_PATH_MAX: usize = 107;

const EXAMPLE: &str = "'connection=socket,name=org.qemu.guest_agent.0,path=/run/guest.agent'";

/// From its parameters.
pub fn channel(params: &Params, devid: u32) -> Result<Placed, Diag> {
    params.check(KEYS)?;
    super::own_backend(params)?;
    let Some(name) = params.text("name") else {
        return Err(params.error("", format!("no name, by which the guest finds it; a channel is {EXAMPLE}")));
    };
    if name.chars().any(char::is_control) {
        return Err(params.error("name", "a name has no control characters"));
    }
    let connection = match (params.text("connection"), params.text("path")) {
        (Some("pty"), None) => ChannelConnection::Pty,
        (Some("pty"), Some(_)) => {
            return Err(params.error("path", "a pty has no path of its own: channel-list tells it"));
        }
        (Some("socket"), Some(path)) => ChannelConnection::Socket { path: socket(params, path)? },
        (Some("socket"), None) => return Err(params.error("connection", "a socket needs path=")),
        (Some(other), _) => {
            return Err(params.error("connection", format!("unknown connection `{other}`: pty or socket")));
        }
        (None, _) => return Err(params.error("", format!("no connection; a channel is {EXAMPLE}"))),
    };
    let config = ChannelConfig { devid, name: name.to_owned(), connection };
    Ok(Placed { device: Device::Channel(config), at: params.at.clone(), warnings: Vec::new() })
}

fn socket(params: &Params, path: &str) -> Result<PathBuf, Diag> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        let limit = format!("the path of a socket has at most {SOCKET_PATH_MAX} bytes, not {length}");
        return Err(params.error("path", limit));
    }
    Ok(path)
}
