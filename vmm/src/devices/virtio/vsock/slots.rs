//! Numbered places for connections, each number with a generation, so that a
//! late event does not hit whoever has the place by then.

/// Names one use of one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    // Boxed: most places of a long list are empty or will be.
    value: Option<Box<T>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slots<T> {
    /// Puts what `make` gives into a free place.
    pub(super) fn insert_with(&mut self, make: impl FnOnce(Token) -> T) -> Token {
        let index = self.free.pop().unwrap_or(self.slots.len() as u32);
        if index as usize == self.slots.len() {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
        }
        let slot = &mut self.slots[index as usize];
        let token = Token {
            index,
            generation: slot.generation,
        };
        slot.value = Some(Box::new(make(token)));
        token
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.index as usize)?;
        slot.value
            .as_deref_mut()
            .filter(|_| slot.generation == token.generation)
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<T> {
        self.get_mut(token)?;
        let slot = &mut self.slots[token.index as usize];
        // Never the generation that makes the token of the listener.
        slot.generation = (slot.generation + 1) & (u32::MAX >> 1);
        self.free.push(token.index);
        slot.value.take().map(|value| *value)
    }

    /// The tokens of all that are there.
    pub(super) fn tokens(&self) -> Vec<Token> {
        let slots = self.slots.iter().enumerate();
        slots
            .filter(|(_, slot)| slot.value.is_some())
            .map(|(index, slot)| Token {
                index: index as u32,
                generation: slot.generation,
            })
            .collect()
    }

    /// Takes all out.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.tokens()
            .into_iter()
            .filter_map(|token| self.remove(token))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_used_again_has_another_token() {
        let mut slots = Slots::default();
        let first = slots.insert_with(|_| 1);
        let second = slots.insert_with(|_| 2);
        assert_eq!(slots.remove(first), Some(1));
        let third = slots.insert_with(|_| 3);
        assert_ne!(first, third);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get_mut(third), Some(&mut 3));
        assert_eq!(Token::from_bits(third.to_bits()), third);
        assert_eq!(slots.tokens(), [third, second]);
        assert_eq!(slots.drain(), [3, 2]);
        assert_eq!(slots.get_mut(second), None);
    }
}
