//! Which objects have been met. Process-local, and as short-lived as the writing of one value.

use smallvec::SmallVec;

/// So many are looked through one by one, which is quicker than a table.
const FEW: usize = 16;
/// No object has this address.
const FREE: usize = 0;

/// Addresses. A few in a row; from [`FEW`] on in a table, at most half full, where each is at the
/// first free place from its own place on.
#[derive(Default)]
pub struct Seen {
    few: SmallVec<[usize; FEW]>,
    /// Empty while there are few, then a power of two.
    table: Vec<usize>,
    in_table: usize,
}

impl Seen {
    /// False if the address was met before.
    #[inline]
    pub fn insert(&mut self, address: usize) -> bool {
        debug_assert_ne!(address, FREE);
        if !self.table.is_empty() {
            return self.insert_in_table(address);
        }
        if self.few.contains(&address) {
            return false;
        }
        if self.few.len() == FEW {
            self.grow(4 * FEW);
            return self.insert_in_table(address);
        }
        self.few.push(address);
        true
    }

    fn insert_in_table(&mut self, address: usize) -> bool {
        if 2 * self.in_table >= self.table.len() {
            self.grow(4 * self.table.len());
        }
        let last = self.table.len() - 1;
        // The low bits of addresses are alike, the high bits of the product are not.
        let product = (address as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut at = (product >> 32) as usize & last;
        loop {
            match self.table[at] {
                FREE => break,
                other if other == address => return false,
                _ => at = (at + 1) & last,
            }
        }
        self.table[at] = address;
        self.in_table += 1;
        true
    }

    #[cold]
    fn grow(&mut self, len: usize) {
        let old = std::mem::replace(&mut self.table, vec![FREE; len]);
        self.in_table = 0;
        for address in std::mem::take(&mut self.few).into_iter().chain(old) {
            if address != FREE {
                self.insert_in_table(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_new_once() {
        for number in [1, FEW, FEW + 1, 5 * FEW, 10_000] {
            let mut seen = Seen::default();
            let addresses = || (1..=number).map(|n| n * 0x30);
            assert!(addresses().all(|address| seen.insert(address)));
            assert!(addresses().all(|address| !seen.insert(address)));
            assert!(seen.insert((number + 1) * 0x30));
        }
    }

    #[test]
    fn addresses_of_one_place_find_room() {
        let mut seen = Seen::default();
        let addresses = || (1..2000_usize).map(|n| n << 40);
        assert!(addresses().all(|address| seen.insert(address)));
        assert!(addresses().all(|address| !seen.insert(address)));
    }
}
