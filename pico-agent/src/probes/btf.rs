//! Where fields lie in the running kernel's structures, from the type information it brings along (BTF:
//! Documentation/bpf/btf.rst of the kernel). Pure but for reading the file.

use std::collections::HashMap;
use std::io;

/// The running kernel's type information (Linux 5.4, CONFIG_DEBUG_INFO_BTF).
const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Structures within structures that are looked into.
const MAX_DEPTH: usize = 8;

/// `BTF_KIND_*` (linux/btf.h).
mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
    pub const LAST: u32 = ENUM64;
}

/// Why an offset is not known.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel brings none.
    #[error("cannot read {KERNEL}; a kernel with CONFIG_DEBUG_INFO_BTF is needed")]
    Missing(#[source] io::Error),
    /// It is not as it is documented.
    #[error("the kernel's type information cannot be understood ({0})")]
    Invalid(&'static str),
    /// The kernel has no such field.
    #[error("this kernel has no {structure}.{field}")]
    NoField {
        /// Of which structure.
        structure: &'static str,
        /// Which field.
        field: &'static str,
    },
}

/// Type information, indexed.
pub struct Types {
    bytes: Vec<u8>,
    /// Where each type begins; type 0 is `void` and has no place.
    places: Vec<usize>,
    strings: usize,
    structures: HashMap<String, u32>,
}

/// A type's first three numbers.
#[derive(Clone, Copy)]
struct Head {
    name: u32,
    kind: u32,
    members: usize,
    /// Bit offsets of members carry a bit-field's size in their upper byte.
    has_bit_fields: bool,
    /// Type it stands for, or size.
    target: u32,
}

impl Types {
    /// Reads those of the running kernel.
    ///
    /// # Errors
    /// When there are none.
    pub fn of_kernel() -> Result<Self, BtfError> {
        Types::parse(std::fs::read(KERNEL).map_err(BtfError::Missing)?)
    }

    /// Indexes type information.
    ///
    /// # Errors
    /// When it is none, or of a kind that did not exist when this was written.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, BtfError> {
        let magic = bytes.first_chunk().map(|magic| u16::from_le_bytes(*magic));
        if magic != Some(MAGIC) {
            return Err(BtfError::Invalid("no magic number"));
        }
        let mut types = Types {
            bytes,
            places: vec![0],
            strings: 0,
            structures: HashMap::new(),
        };
        let header = types.size_at(4)?;
        let section = |types: &Types, at: usize| -> Result<(usize, usize), BtfError> {
            let start = header.checked_add(types.size_at(at)?);
            let start = start.ok_or(BtfError::Invalid("a section's place"))?;
            let end = start.checked_add(types.size_at(at + 4)?);
            let end = end.filter(|end| *end <= types.bytes.len());
            Ok((start, end.ok_or(BtfError::Invalid("a section's length"))?))
        };
        let (mut at, end) = section(&types, 8)?;
        types.strings = section(&types, 16)?.0;
        while at < end {
            let head = types.head_at(at)?;
            if head.kind == kind::STRUCT
                && let Some(name) = types.string(head.name)
            {
                let id = u32::try_from(types.places.len()).unwrap_or(u32::MAX);
                types.structures.entry(name.to_owned()).or_insert(id);
            }
            types.places.push(at);
            at += 12 + rest(head).ok_or(BtfError::Invalid("a kind of type that is not known"))?;
        }
        Ok(types)
    }

    /// Offset in bytes of a field, which may lie in unnamed parts of the structure.
    ///
    /// # Errors
    /// When there is no such field.
    pub fn offset(&self, structure: &'static str, field: &'static str) -> Result<u32, BtfError> {
        let id = self.structures.get(structure).copied();
        let bits = id.and_then(|id| self.find(id, field, MAX_DEPTH));
        match bits {
            Some(bits) if bits % 8 == 0 => Ok(bits / 8),
            _ => Err(BtfError::NoField { structure, field }),
        }
    }

    fn find(&self, id: u32, field: &str, depth: usize) -> Option<u32> {
        let place = *self.places.get(id as usize)?;
        let head = self.head_at(place).ok()?;
        match head.kind {
            kind::STRUCT | kind::UNION => {}
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                return self.find(head.target, field, depth.checked_sub(1)?);
            }
            _ => return None,
        }
        for member in 0..head.members {
            let at = place + 12 + member * 12;
            let (name, target) = (self.number_at(at).ok()?, self.number_at(at + 4).ok()?);
            let mut bits = self.number_at(at + 8).ok()?;
            if head.has_bit_fields {
                bits &= 0x00ff_ffff;
            }
            if name == 0 {
                let inside = depth
                    .checked_sub(1)
                    .and_then(|depth| self.find(target, field, depth));
                if let Some(inside) = inside {
                    return bits.checked_add(inside);
                }
            } else if self.string(name) == Some(field) {
                return Some(bits);
            }
        }
        None
    }

    fn head_at(&self, at: usize) -> Result<Head, BtfError> {
        let info = self.number_at(at + 4)?;
        Ok(Head {
            name: self.number_at(at)?,
            kind: info >> 24 & 0x1f,
            members: (info & 0xffff) as usize,
            has_bit_fields: info >> 31 != 0,
            target: self.number_at(at + 8)?,
        })
    }

    fn number_at(&self, at: usize) -> Result<u32, BtfError> {
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        let bytes = bytes.ok_or(BtfError::Invalid("it ends too early"))?;
        Ok(u32::from_le_bytes(*bytes))
    }

    fn size_at(&self, at: usize) -> Result<usize, BtfError> {
        Ok(self.number_at(at)? as usize)
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let bytes = self.bytes.get(self.strings.checked_add(offset as usize)?..)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&bytes[..end])
            .ok()
            .filter(|name| !name.is_empty())
    }
}

/// Bytes of a type after its first three numbers.
fn rest(head: Head) -> Option<usize> {
    match head.kind {
        kind::INT | kind::VAR | kind::DECL_TAG => Some(4),
        kind::ARRAY => Some(12),
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => Some(head.members * 12),
        kind::ENUM | kind::FUNC_PROTO => Some(head.members * 8),
        1..=kind::LAST => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `struct task { int pid; struct { const union { int a; int tgid:3; }; int tgid2; } }`, more or less.
    fn sample() -> Vec<u8> {
        let mut strings = vec![0];
        let mut name = |text: &str| {
            let at = u32::try_from(strings.len()).unwrap();
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            at
        };
        let (task, pid, uid, int) = (name("task"), name("pid"), name("uid"), name("int"));
        let bits = name("bits");
        let kind = |kind: u32, members: u32| kind << 24 | members;
        let types: &[u32] = &[
            // 1: int
            int,
            kind(kind::INT, 0),
            4,
            32, // 2: const 3
            0,
            kind(kind::CONST, 0),
            3, // 3: union { int uid; }
            0,
            kind(kind::UNION, 1),
            4,
            uid,
            1,
            0, // 4: struct task { int pid; const union; int bits:3 }
            task,
            1 << 31 | kind(kind::STRUCT, 3),
            12,
            pid,
            1,
            0,
            0,
            2,
            32,
            bits,
            1,
            3 << 24 | 67,
        ];
        let types: Vec<u8> = types.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&[1, 0]);
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        for number in [24, 0, length(&types), length(&types), length(&strings)] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&types);
        bytes.extend_from_slice(&strings);
        bytes
    }

    #[test]
    fn fields_are_found_in_unnamed_parts_too_and_bit_fields_have_no_byte() {
        let types = Types::parse(sample()).unwrap();
        assert_eq!(types.offset("task", "pid").unwrap(), 0);
        assert_eq!(types.offset("task", "uid").unwrap(), 4);
        for (structure, field) in [("task", "bits"), ("task", "gone"), ("gone", "pid")] {
            let error = types.offset(structure, field).unwrap_err().to_string();
            assert!(error.contains(&format!("{structure}.{field}")), "{error}");
        }
    }

    #[test]
    fn the_running_kernel_has_every_field_that_the_programs_read() {
        let Ok(types) = Types::of_kernel() else { return };
        for (_, structure, field) in pico_ebpf::OFFSETS {
            types.offset(structure, field).unwrap();
        }
        // Two ints beside each other since always.
        let [pid, tgid] = ["pid", "tgid"].map(|field| types.offset("task_struct", field).unwrap());
        assert_eq!(tgid, pid + 4);
    }

    proptest! {
        #[test]
        fn damaged_type_information_is_an_error_or_lacks_fields(cut in 0usize..240, flips in proptest::collection::vec((0usize..240, any::<u8>()), 0..6)) {
            let mut bytes = sample();
            for (at, byte) in flips {
                if let Some(slot) = bytes.get_mut(at) { *slot = byte; }
            }
            bytes.truncate(cut);
            if let Ok(types) = Types::parse(bytes) {
                let _ = types.offset("task", "uid");
                let _ = types.offset("task", "bits");
            }
        }
    }
}
