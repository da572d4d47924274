//! Whether it pays not to sleep for a moment.
//!
//! A guest that goes through the store, as one does when it boots, asks again some microseconds after each answer: sooner
//! than a sleeping thread wakes. So after a domain was answered the loop looks again and again for a moment, as KVM does
//! for a vCPU that halts; but only where the last domain asked again so soon, and where nobody else wants the CPU.

use std::time::{Duration, Instant};

/// How long. Who asks again so soon although a thread had to be woken for it will be sooner if none has to.
const MOMENT: Duration = Duration::from_micros(60);
/// Whoever is away so long when it gives others a chance has lost the CPU to them.
const CROWD: Duration = Duration::from_micros(10);
/// How long then nothing is tried.
const PAUSE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(super) struct Linger {
    /// Not before then; none for never.
    begins: Option<Instant>,
    pays: bool,
    /// When a domain was answered last, until one asks again.
    answered: Option<Instant>,
}

impl Linger {
    /// `begins`: not before then; none for never.
    pub(super) fn new(begins: Option<Instant>) -> Self {
        Self { begins, pays: false, answered: None }
    }

    /// A domain was told of an answer.
    pub(super) fn answered(&mut self, now: Instant) {
        self.answered = self.begins.filter(|begins| *begins <= now).map(|_| now);
    }

    /// A domain asks.
    pub(super) fn asked(&mut self, now: Instant) {
        if let Some(answered) = self.answered.take() {
            self.pays = now - answered < MOMENT;
        }
    }

    /// Whether others should be given a chance, and the loop look again.
    pub(super) fn tries(&self) -> bool {
        self.pays && self.answered.is_some()
    }

    /// Others were given a chance in between. Whether to look now.
    pub(super) fn goes_on(&mut self, before: Instant, now: Instant) -> bool {
        if now - before > CROWD {
            self.begins = Some(now + PAUSE);
        }
        self.pays = self.answered.is_some_and(|answered| now - answered < MOMENT);
        self.pays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_pays_where_a_domain_asks_soon_and_nobody_else_wants_the_cpu() {
        let begin = Instant::now();
        let at = |micros| begin + Duration::from_micros(micros);
        let mut linger = Linger::new(Some(begin));
        linger.answered(at(0));
        assert!(!linger.tries(), "nothing is known yet");
        linger.asked(at(50));
        assert!(!linger.tries(), "nobody was answered");
        linger.answered(at(60));
        assert!(linger.tries() && linger.goes_on(at(61), at(62)) && linger.goes_on(at(110), at(119)));
        assert!(!linger.goes_on(at(119), at(120)) && !linger.tries(), "in vain");
        linger.asked(at(130));
        linger.answered(at(140));
        assert!(!linger.tries(), "it would have been in vain again");
        linger.asked(at(150));
        linger.answered(at(160));
        assert!(linger.tries() && linger.goes_on(at(161), at(172)), "the CPU was away");
        linger.asked(at(173));
        linger.answered(at(180));
        assert!(!linger.tries());
        linger.answered(at(100_171));
        assert!(!linger.tries());
        linger.answered(at(100_172));
        assert!(linger.tries());
        let mut never = Linger::new(None);
        never.answered(at(0));
        never.asked(at(1));
        never.answered(at(2));
        assert!(!never.tries());
    }
}
