//! Which multicast packets the guest wants (`feature-multicast-control`).

use super::chain::Group;

/// Groups kept (as Linux's backend does).
const MAX: usize = 64;

/// The guest's list, and whether it is in force.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only multicast packets of the listed groups pass.
    pub on: bool,
    groups: Vec<[u8; 6]>,
}

impl Filter {
    /// Changes the list; false if it is full or the address is no group's.
    pub fn change(&mut self, group: Group) -> bool {
        match group {
            Group::Add(address) if self.groups.contains(&address) => true,
            Group::Add(address) => {
                let fits = self.groups.len() < MAX && is_group(&address);
                if fits {
                    self.groups.push(address);
                }
                fits
            }
            Group::Del(address) => {
                self.groups.retain(|group| *group != address);
                true
            }
        }
    }

    /// Whether a packet to this address goes to the guest.
    pub fn passes(&self, destination: &[u8; 6]) -> bool {
        !self.on || !is_group(destination) || *destination == [0xff; 6] || self.groups.contains(destination)
    }
}

fn is_group(address: &[u8; 6]) -> bool {
    address[0] & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_groups_pass_when_in_force() {
        let (mdns, other) = ([1, 0, 0x5e, 0, 0, 0xfb], [0x33, 0x33, 0, 0, 0, 2]);
        let mut filter = Filter::default();
        assert!(filter.change(Group::Add(mdns)));
        assert!(filter.passes(&other), "not in force");
        filter.on = true;
        assert!(filter.passes(&mdns) && !filter.passes(&other));
        assert!(filter.passes(&[0xff; 6]) && filter.passes(&[2, 0, 0, 0, 0, 1]), "broadcast and unicast");
        assert!(filter.change(Group::Del(mdns)) && !filter.passes(&mdns));
    }

    #[test]
    fn the_list_is_bounded() {
        let mut filter = Filter::default();
        let added = (0..=255).filter(|i| filter.change(Group::Add([1, 0, 0, 0, 0, *i]))).count();
        assert_eq!(added, MAX);
        assert!(filter.change(Group::Add([1, 0, 0, 0, 0, 3])), "already there");
        assert!(!Filter::default().change(Group::Add([0; 6])), "no group");
    }
}
