//! How much a value takes on its way between guest and host. Every text and list counts, and so does the value itself: a
//! list of a million empty texts is not nothing.

/// What crosses the boundary.
pub trait Weigh {
    /// Bytes that it refers to, besides its own.
    fn referred(&self) -> usize;

    fn weight(&self) -> usize {
        size_of_val(self) + self.referred()
    }

    /// Of all of a list.
    fn weight_of(list: &[Self]) -> usize
    where
        Self: Sized,
    {
        list.iter().map(Weigh::weight).sum()
    }
}

/// These refer to nothing.
macro_rules! plain {
    ($($type:ty),+ $(,)?) => { $(impl $crate::sandbox::imports::weight::Weigh for $type {
        fn referred(&self) -> usize {
            0
        }

        fn weight_of(list: &[Self]) -> usize {
            size_of_val(list)
        }
    })+ };
}

/// Records, with all of their fields: one that is left out does not compile.
macro_rules! records {
    ($($type:path { $($field:ident),+ $(,)? })+) => { $(impl $crate::sandbox::imports::weight::Weigh for $type {
        fn referred(&self) -> usize {
            let Self { $($field),+ } = self;
            0 $(+ $crate::sandbox::imports::weight::Weigh::referred($field))+
        }
    })+ };
}

pub(super) use {plain, records};

plain!((), bool, u8, u16, u32, u64, f64);

impl Weigh for String {
    fn referred(&self) -> usize {
        self.len()
    }
}

impl<T: Weigh> Weigh for Vec<T> {
    fn referred(&self) -> usize {
        T::weight_of(self)
    }
}

impl<T: Weigh> Weigh for Option<T> {
    fn referred(&self) -> usize {
        self.as_ref().map_or(0, Weigh::referred)
    }
}

impl<T: Weigh, E: Weigh> Weigh for Result<T, E> {
    fn referred(&self) -> usize {
        match self {
            Ok(value) => value.referred(),
            Err(error) => error.referred(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_lists_and_what_holds_them_count() {
        assert_eq!(7_u16.weight(), 2);
        assert_eq!("four".to_owned().weight(), size_of::<String>() + 4);
        let texts = vec![String::new(); 1000];
        assert!(texts.weight() > 1000 * size_of::<String>());
        assert_eq!(Some("four".to_owned()).referred() + None::<String>.referred(), 4);
        assert_eq!(Ok::<_, ()>(vec![1_u32, 2]).referred(), 8);
    }
}
