//! Domains that ask again at once are answered without sleep in between.
//!
//! To sleep until a kick, and to be woken by it, takes longer than any request. So while the requests of domains follow
//! each other quickly the loop looks at their rings for a moment before it sleeps: the pages are mapped, and a look is two
//! loads. It does so in vain at most once for each such request. Everybody else is listened to meanwhile. Where other
//! programs want the CPU it is theirs.

use std::time::Duration;

use super::Server;
use super::link::Carrier;
use crate::store::ConnId;

/// So soon is at once, and so long is a moment.
const MOMENT: Duration = Duration::from_micros(100);
/// Looks at the rings between two at everything else.
const LOOKS: usize = 128;
/// Rings that are looked at.
const RINGS: usize = 4;
/// A turn that took longer than a moment shows that other programs want the CPU. It is theirs for so long then, and twice as
/// long every time that they want it again within that time.
const REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Which rings are looked at, and until when.
#[derive(Default)]
pub(super) struct Linger {
    /// There is another CPU, on which a domain can ask meanwhile.
    able: bool,
    /// Those that have just been answered.
    rings: Vec<ConnId>,
    /// When a ring was answered last, on the server's clock.
    answered: Duration,
    until: Duration,
    /// When the last turn began.
    turned: Duration,
    /// Not before that.
    rests: Duration,
    /// How long it rested.
    rest: Duration,
}

impl Linger {
    pub(super) fn new() -> Self {
        let able = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        Self { able, ..Self::default() }
    }

    /// A request of a domain was answered in the turn that began `now`.
    pub(super) fn answered(&mut self, conn: ConnId, now: Duration) {
        if self.able && now < self.answered + MOMENT && now >= self.rests {
            self.until = now + MOMENT;
            if !self.rings.contains(&conn) && self.rings.len() < RINGS {
                self.rings.push(conn);
            }
        }
        self.answered = now;
    }

    /// Whether the loop goes on instead of sleeping.
    pub(super) fn is_on(&self) -> bool {
        !self.rings.is_empty()
    }

    /// A turn began `now`. It ends when the moment is over, whatever the rings have: a domain that does not take its replies
    /// may leave requests there for ever.
    pub(super) fn turn(&mut self, now: Duration) {
        if self.is_on() && now > self.turned + MOMENT {
            let again = now < self.rests + self.rest;
            self.rest = if again { (self.rest * 2).min(LONGEST_REST) } else { REST };
            self.rests = now + self.rest;
        }
        self.turned = now;
        if now >= self.until || now < self.rests {
            self.rings.clear();
        }
    }
}

impl Server {
    /// Looks at rings for as long as everybody else may go unheard.
    pub(super) fn look(&mut self) {
        if !self.linger.is_on() || !self.queue.is_empty() {
            return;
        }
        for _ in 0..LOOKS {
            let has_request = |conn: &&ConnId| match self.links.get(conn).map(|link| &link.carrier) {
                Some(Carrier::Ring(domain)) => domain.ring.has_request(),
                _ => false,
            };
            if let Some(&conn) = self.linger.rings.iter().find(has_request) {
                return self.enqueue(conn);
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONN: ConnId = ConnId(1);

    fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn able() -> Linger {
        Linger { able: true, ..Linger::default() }
    }

    #[test]
    fn who_asks_at_once_is_looked_at_for_a_moment() {
        let mut linger = able();
        linger.turn(us(1000));
        linger.answered(CONN, us(1000));
        assert!(!linger.is_on(), "nothing says that it asks again");
        linger.turn(us(1099));
        linger.answered(CONN, us(1099));
        assert!(linger.is_on());
        linger.turn(us(1150));
        assert!(linger.is_on());
        linger.turn(us(1160));
        linger.answered(CONN, us(1160));
        linger.turn(us(1259));
        assert!(linger.is_on(), "a moment since the last request");
        linger.turn(us(1260));
        assert!(!linger.is_on());
        linger.answered(CONN, us(1260));
        assert!(!linger.is_on(), "it asked late");
        for n in 0..100 {
            linger.answered(ConnId(n), us(1261));
        }
        assert_eq!(linger.rings.len(), RINGS);
    }

    #[test]
    fn nobody_lingers_where_the_cpu_is_wanted() {
        let mut linger = Linger::default();
        for now in [1, 2, 3] {
            linger.answered(CONN, us(now));
            assert!(!linger.is_on(), "it is the only one");
        }
        let mut linger = able();
        let mut now = us(0);
        // How long it does not linger after it could for `free` and then had to wait for the CPU.
        let mut rest = |free: Duration| {
            let began = now;
            while now < began + free || !linger.is_on() {
                now += us(50);
                linger.turn(now);
                linger.answered(CONN, now);
            }
            now += us(101);
            linger.turn(now);
            assert!(!linger.is_on(), "another program ran");
            let began = now;
            while !linger.is_on() {
                now += us(50);
                linger.turn(now);
                linger.answered(CONN, now);
            }
            now - began
        };
        let rests = [0; 10].map(|_| rest(us(50)).as_millis());
        assert_eq!(rests, [10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000]);
        assert_eq!(rest(Duration::from_secs(2)).as_millis(), 10);
    }
}
