//! Two Linux guests talk as libvchan has it: the server grants a page and opens a port, and says both in the store; the
//! client maps the one, binds to the other, and they send each other messages, with an event for every change.
//!
//! `channel server|client DOMID client-leaves|server-leaves|server-dies`: with the guest DOMID, until the one leaves
//! and the other has seen that.

mod device;
mod ring;

use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use xenstored::client::Client;
use xenstored::perms::{Access, Perm};

use device::{Page, Port};
use ring::Role;

/// Messages each way.
const MESSAGES: u32 = 2000;
/// How long the other one may take for anything.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How a talk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Leaves(Role),
    /// With all its domain.
    Dies(Role),
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [role, domid, how] = words.as_slice() else { bail!("usage: channel server|client DOMID HOW") };
    let role = match role.as_str() {
        "server" => Role::Server,
        "client" => Role::Client,
        other => bail!("{other}: server or client"),
    };
    let end = match how.as_str() {
        "client-leaves" => End::Leaves(Role::Client),
        "server-leaves" => End::Leaves(Role::Server),
        "server-dies" => End::Dies(Role::Server),
        other => bail!("{other}: client-leaves, server-leaves or server-dies"),
    };
    let domid = domid.parse().with_context(|| format!("domid {domid}"))?;
    let mut store = Client::connect_default()?;
    let mut talk = match role {
        Role::Server => serve(&mut store, domid, how)?,
        Role::Client => come(&mut store, domid, how)?,
    };
    talk.exchange()?;
    match end {
        End::Dies(who) if who == role => {
            println!("guest: channel open");
            loop {
                sleep(PATIENCE);
            }
        }
        End::Dies(_) => {
            while store.read(&format!("/local/domain/{domid}/data/channel/{how}/port")).is_ok() {
                sleep(LOOK_AGAIN);
            }
            talk.is_still_there()?;
        }
        End::Leaves(who) if who == role => {}
        End::Leaves(_) => talk.until_left()?,
    }
    drop(talk);
    println!("guest: channel {how} done");
    Ok(())
}

/// The page, the port, and which of the two we are.
struct Talk {
    role: Role,
    page: Page,
    port: Port,
}

/// Opens both ends and says so in the store; returns when the client is there.
fn serve(store: &mut Client, client: u16, how: &str) -> Result<Talk> {
    let (page, gref) = Page::grant(client)?;
    let mut talk = Talk { role: Role::Server, page, port: Port::unbound(client)? };
    talk.is_here()?;
    let own = store.read_string("domid")?;
    let path = format!("data/channel/{how}");
    store.mkdir(&path)?;
    // The server's own, and the client may read it.
    store.set_perms(&path, &[Perm::new(Access::None, own.parse()?), Perm::new(Access::Read, client)])?;
    store.write(&format!("{path}/gref"), gref.to_string())?;
    store.write(&format!("{path}/port"), talk.port.number.to_string())?;
    while !talk.other_is_here() {
        talk.port.wait(PATIENCE)?;
    }
    Ok(talk)
}

/// Finds what the server has opened.
fn come(store: &mut Client, server: u16, how: &str) -> Result<Talk> {
    let path = format!("/local/domain/{server}/data/channel/{how}");
    let tries = PATIENCE.as_millis() / LOOK_AGAIN.as_millis();
    // The port is written last.
    let port = (0..tries).find_map(|_| {
        let read = store.read_string(&format!("{path}/port")).ok();
        read.or_else(|| {
            sleep(LOOK_AGAIN);
            None
        })
    });
    let port: u32 = port.context("the server opens nothing")?.parse()?;
    let gref: u32 = store.read_string(&format!("{path}/gref"))?.parse()?;
    let page = Page::of(server, gref)?;
    let talk = Talk { role: Role::Client, page, port: Port::bound(server, port)? };
    ensure!(talk.other_is_here(), "the server's page does not say that it is here");
    talk.is_here()?;
    talk.port.notify()?;
    Ok(talk)
}

impl Talk {
    fn is_here(&self) -> Result<()> {
        let at = self.role.life();
        self.page.u8(at).store(1, Ordering::SeqCst);
        self.page.notify_at_end(at as u64, self.port.number)
    }

    fn other_is_here(&self) -> bool {
        self.page.u8(self.role.other().life()).load(Ordering::SeqCst) == 1
    }

    fn exchange(&mut self) -> Result<()> {
        let (me, other) = (self.role, self.role.other());
        let (mut sent, mut received, mut waited) = (0, 0, 0);
        while sent < MESSAGES || received < MESSAGES {
            let before = (sent, received);
            while sent < MESSAGES && me.ring(&self.page).put(&me.message(sent))? {
                sent += 1;
            }
            while let Some(message) = other.ring(&self.page).take()? {
                ensure!(message == other.message(received), "message {received} is another one");
                received += 1;
            }
            if (sent, received) == before {
                ensure!(self.other_is_here(), "the other one is gone after {received} messages");
                self.port.wait(PATIENCE)?;
                waited += 1;
            } else {
                self.port.notify()?;
            }
        }
        println!("guest: channel {sent} messages sent, {received} received, {waited} events waited for");
        Ok(())
    }

    fn until_left(&mut self) -> Result<()> {
        while self.other_is_here() {
            self.port.wait(PATIENCE)?;
        }
        Ok(())
    }

    /// The page of a dead domain stays as it was, and its port goes nowhere.
    fn is_still_there(&self) -> Result<()> {
        ensure!(self.other_is_here(), "the page of the dead server has changed");
        let last = self.page.u8(device::PAGE - 1);
        last.store(0x5a, Ordering::SeqCst);
        ensure!(last.load(Ordering::SeqCst) == 0x5a, "the page of the dead server cannot be written to");
        self.port.notify()
    }
}
