//! The two shapes everything else is made of: open enums, and layouts checked by tests.

/// An open enum: a newtype over the wire integer with Xen's names as constants.
///
/// A guest may send any value, so every value is representable and none is undefined behaviour.
/// `name()` gives Xen's name of a known value, for logs and traces.
macro_rules! open_enum {
    (
        $(#[$meta:meta])*
        pub struct $Name:ident($int:ty) {
            $( $(#[$vmeta:meta])* $VAR:ident = $val:expr ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $Name(pub $int);

        impl $Name {
            $( $(#[$vmeta])* pub const $VAR: Self = Self($val); )*

            /// Xen's name of this value, if it has one.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                $( if self.0 == $val { return Some(stringify!($VAR)); } )*
                None
            }
        }

        impl core::fmt::Debug for $Name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{}({})", stringify!($Name), self.0),
                }
            }
        }

        impl core::fmt::Display for $Name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Debug::fmt(self, f)
            }
        }
    };
}

/// Structs of the ABI: `#[repr(C)]`, plain copies of bytes, no implicit padding (zerocopy refuses it).
macro_rules! abi_structs {
    ($(
        $(#[$meta:meta])*
        pub struct $Name:ident {
            $( $(#[$fmeta:meta])* pub $field:ident : $ty:ty ),* $(,)?
        }
    )*) => {$(
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(C)]
        pub struct $Name {
            $( $(#[$fmeta])* pub $field: $ty, )*
        }
    )*};
}

/// Identifiers that are plain numbers to the guest: newtypes that print as the number.
macro_rules! ids {
    ($( $(#[$meta:meta])* pub struct $Name:ident($int:ty); )*) => {$(
        $(#[$meta])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $Name(pub $int);

        impl core::fmt::Debug for $Name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(&self.0, f)
            }
        }

        impl core::fmt::Display for $Name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}

/// Ties a struct to its 32-bit twin: `From` widens what a 32-bit guest passed, `to_compat` narrows an answer.
///
/// `=` fields are the same in both, `~` fields are `u64` and `u32` (cut, as Xen's translation does),
/// `@` fields are `u64` in both but only 4-byte aligned in the twin. Padding becomes 0.
macro_rules! twins {
    ($( $Full:ident / $Compat:ident { $(= $same:ident)* $(~ $wide:ident)* $(@ $le:ident)* } )*) => {$(
        #[allow(clippy::needless_update)]
        impl From<$Compat> for $Full {
            fn from(c: $Compat) -> Self {
                Self {
                    $($same: c.$same,)*
                    $($wide: u64::from(c.$wide),)*
                    $($le: c.$le.get(),)*
                    ..<Self as zerocopy::FromZeros>::new_zeroed()
                }
            }
        }

        #[allow(clippy::needless_update, clippy::cast_possible_truncation)]
        impl $Full {
            /// The same value as a 32-bit guest reads it; addresses and frames are cut to 32 bits.
            #[must_use]
            pub fn to_compat(self) -> $Compat {
                $Compat {
                    $($same: self.$same,)*
                    $($wide: self.$wide as u32,)*
                    $($le: zerocopy::little_endian::U64::new(self.$le),)*
                    ..<$Compat as zerocopy::FromZeros>::new_zeroed()
                }
            }
        }
    )*};
}

/// One test per struct: its size, the offsets of its fields (literals of the C header), and a trip through bytes.
#[cfg(test)]
macro_rules! layout {
    ($( $Name:ident = $size:literal { $( $field:ident : $off:literal ),* $(,)? } )*) => {$(
        #[test]
        #[allow(non_snake_case)]
        fn $Name() {
            use zerocopy::{FromBytes, IntoBytes};
            const SIZE: usize = $size;
            assert_eq!(size_of::<$Name>(), SIZE, "size");
            $( assert_eq!(core::mem::offset_of!($Name, $field), $off, "offset of {}", stringify!($field)); )*
            let bytes: [u8; SIZE] = core::array::from_fn(|i| i.to_le_bytes()[0] ^ 0x5a);
            let value = $Name::read_from_bytes(&bytes).expect("any bytes are a value");
            assert_eq!(value.as_bytes(), bytes);
        }
    )*};
}
