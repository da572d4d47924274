//! Devices in xl's columns.

use super::show_mac;
use xen_emu_api::control::DeviceStatus;
use xen_emu_api::device::{ChannelConnection, Device};

/// Header of `block-list`.
pub const DISKS: &str = "Vdev  BE  handle state evt-ch ring-ref BE-path                       ";
/// Header of `network-list`.
pub const VIFS: &str =
    "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       ";
/// Header of `channel-list`.
pub const CHANNELS: &str = "Idx BE state evt-ch ring-ref connection                               ";

/// One line of the list the device belongs to. Domain 0 is the back end of all; -1 stands for what is not there.
pub fn row(domid: u16, status: &DeviceStatus) -> String {
    let port = status.port.map_or(-1, i64::from);
    let ring = |at: usize| status.rings.get(at).copied().map_or(-1, i64::from);
    let (state, devid, kind) = (status.state, status.device.devid(), status.device.kind());
    let path = format!("/local/domain/0/backend/{kind}/{domid}/{devid}");
    match &status.device {
        // xl's handle of a disk is its domain.
        Device::Disk(_) => {
            format!("{devid:<5} {:<3} {domid:<6} {state:<5} {port:<6} {:<8} {path:<30}", 0, ring(0))
        }
        Device::Vif(vif) => {
            let mac = show_mac(&vif.mac);
            let (tx, rx) = (ring(0), ring(1));
            format!("{devid:<3} {:<2} {mac}{devid:>6} {state:>5} {port:>6} {tx:>5}/{rx:<11} {path:<30}", 0)
        }
        Device::Channel(channel) => {
            let index = devid.saturating_sub(1);
            let line = format!("{index:<3} {:<2} {state:<5} {port:<6} {:<8} ", 0, ring(0));
            match &channel.connection {
                ChannelConnection::Socket { .. } => format!("{line}{:<10} ", "socket"),
                ChannelConnection::Pty => {
                    format!("{line}{:<10} {:<30}", "pty", status.path.as_deref().unwrap_or_default())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{disk_of, vif_of};
    use crate::xlcfg::XlConf;
    use std::collections::BTreeMap;
    use xen_emu_api::device::ChannelConfig;

    fn status(device: Device, port: Option<u32>, rings: &[u32]) -> DeviceStatus {
        DeviceStatus { device, state: 4, port, rings: rings.to_vec(), path: None, counters: BTreeMap::new() }
    }

    #[test]
    fn rows_are_xl_s() {
        let disk = disk_of(&["/d.img,raw,xvda,w".into()]).unwrap().device;
        assert_eq!(
            row(2, &status(disk.clone(), Some(8), &[8])),
            "51712 0   2      4     8      8        /local/domain/0/backend/vbd/2/51712"
        );
        assert_eq!(
            row(2, &DeviceStatus { state: 1, ..status(disk, None, &[]) }),
            "51712 0   2      1     -1     -1       /local/domain/0/backend/vbd/2/51712"
        );
        let vif = vif_of(&["mac=00:16:3e:00:00:01".into()], &[], &XlConf::default()).unwrap().device;
        assert_eq!(
            row(2, &status(vif, None, &[522, 523])),
            "0   0  00:16:3e:00:00:01     0     4     -1   522/523         /local/domain/0/backend/vif/2/0"
        );
        let channel =
            |connection| Device::Channel(ChannelConfig { devid: 1, name: "agent".into(), connection });
        let socket = channel(ChannelConnection::Socket { path: "/run/ch.sock".into() });
        assert_eq!(row(16, &status(socket, Some(13), &[8])), "0   0  4     13     8        socket     ");
        let pty = DeviceStatus {
            path: Some("/dev/pts/7".into()),
            ..status(channel(ChannelConnection::Pty), Some(13), &[8])
        };
        assert_eq!(row(16, &pty), "0   0  4     13     8        pty        /dev/pts/7                    ");
    }
}
