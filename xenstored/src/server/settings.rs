//! What was set while the daemon ran and is kept nowhere else, as names and values: a live update carries it over.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::Server;
use crate::migration::{Record, Stream};

/// One setting.
pub(super) type Setting = (String, Vec<u8>);

impl Server {
    pub(super) fn dump_settings(&self, stream: &mut Stream) {
        let number = |(name, number): (String, u64)| (name, number.to_string().into_bytes());
        for (name, value) in self.store.own_settings().into_iter().map(number).chain(self.trace_settings()) {
            stream.put(&Record::Setting { name: name.as_bytes(), value: &value });
        }
    }

    fn trace_settings(&self) -> Vec<Setting> {
        let (file, on, switches) = self.trace.state();
        let file = file.map(|file| ("trace-file".to_owned(), file.as_os_str().to_owned().into_vec()));
        let bits = switches.to_string().into_bytes();
        let others = [("trace-switches".to_owned(), bits), ("trace".to_owned(), vec![b'0' + u8::from(on)])];
        file.into_iter().chain(others).collect()
    }

    /// Takes the settings over; those that nobody knows any more are passed over.
    pub(super) fn resume_settings(&mut self, settings: &[Setting]) {
        for (name, value) in settings {
            let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
            let done = match (name.as_str(), number) {
                ("trace-file", _) => self.trace.set_file(OsStr::from_bytes(value).into()),
                ("trace-switches", Some(bits)) => {
                    self.trace.set_switches(bits);
                    Ok(())
                }
                ("trace", Some(0)) => {
                    self.trace.close();
                    Ok(())
                }
                (_, Some(number)) => {
                    self.store.resume_setting(name, number);
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(error) = done {
                tracing::warn!("{name} {}: {error}", String::from_utf8_lossy(value));
            }
        }
    }
}
