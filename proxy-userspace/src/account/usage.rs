//! Whether a flow was of use to somebody: what is counted so is what operators watch, for it falls when a server is blocked
//! and does not rise with scanners.
//!
//! - A *chat* is of use once its client has opened as the chat protocol does, has been answered, and has spoken again.
//!   A client's hello is answered to everyone, so scanners and `setu doctor`, which asks just that, have an answer as
//!   well; only who finishes the handshake (Noise) with WhatsApp's server goes on.
//! - *Media* is of use once it has moved more than [`MEDIA`] bytes, both ways together. A TLS handshake, which is all that
//!   `setu doctor` makes, moves less.
//!
//! Nothing else is: no health check, which says nothing; nobody who is turned away; no visitor of the operator's web
//! server; no client without a gate before it that does not open as the chat protocol does.
//!
//! A flow is counted once, in the moment in which it becomes useful, since a chat lasts for hours. Who moves bytes tells
//! of them in the order in which they were handed over, which is all that is needed to know who spoke after whom.

use super::Side;

/// Bytes of media, both ways together, that no handshake comes to: 4 KiB of certificates are many.
const MEDIA: u32 = 16 * 1024;

/// What a flow is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Messages.
    Chat,
    /// Pictures, films, documents.
    Media,
}

/// How far a flow is from being useful.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    /// It is counted, or never will be.
    Settled,
    /// A chat whose client has said nothing yet.
    Silent,
    /// It has, and the upstream has not answered.
    Asked,
    /// It has been answered.
    Answered,
    /// Media that may move so many bytes more before it counts.
    Media(u32),
}

impl Purpose {
    /// Every purpose.
    pub const ALL: [Self; 2] = [Self::Chat, Self::Media];

    /// Its name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Media => "media",
        }
    }
}

impl Usage {
    /// Of a new flow. `None`: nobody of WhatsApp's clients is known to be served by it.
    pub(crate) fn of(purpose: Option<Purpose>) -> Self {
        match purpose {
            Some(Purpose::Chat) => Self::Silent,
            Some(Purpose::Media) => Self::Media(MEDIA),
            None => Self::Settled,
        }
    }

    /// Bytes from this side were handed to the other. Returns what the flow has become useful for by them.
    pub(crate) fn moved(&mut self, from: Side, bytes: u64) -> Option<Purpose> {
        if bytes == 0 {
            return None;
        }
        let (next, useful) = match (*self, from) {
            (Self::Silent, Side::Client) => (Self::Asked, None),
            (Self::Asked, Side::Upstream) => (Self::Answered, None),
            (Self::Answered, Side::Client) => (Self::Settled, Some(Purpose::Chat)),
            (Self::Media(left), _) => match u64::from(left).checked_sub(bytes) {
                Some(left) => (Self::Media(left as u32), None),
                None => (Self::Settled, Some(Purpose::Media)),
            },
            (same, _) => (same, None),
        };
        *self = next;
        useful
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a flow counts as that moves this.
    fn counted(purpose: Option<Purpose>, moves: &[(Side, u64)]) -> Vec<Purpose> {
        let mut usage = Usage::of(purpose);
        moves.iter().filter_map(|(from, bytes)| usage.moved(*from, *bytes)).collect()
    }

    #[test]
    fn a_chat_that_goes_on_after_the_answer() {
        use Side::{Client, Upstream};
        let chat = |moves: &[(Side, u64)]| counted(Some(Purpose::Chat), moves);
        assert_eq!(chat(&[]), [], "a health check");
        assert_eq!(chat(&[(Client, 43)]), [], "no answer");
        assert_eq!(chat(&[(Client, 43), (Upstream, 350)]), [], "the doctor");
        assert_eq!(
            chat(&[(Client, 2), (Client, 41), (Upstream, 350), (Upstream, 1)]),
            [],
            "a hello in pieces"
        );
        assert_eq!(chat(&[(Upstream, 350), (Client, 43)]), [], "an upstream that speaks first");
        assert_eq!(chat(&[(Client, 43), (Upstream, 350), (Client, 0)]), [], "nothing is nothing");
        assert_eq!(chat(&[(Client, 43), (Upstream, 350), (Client, 1)]), [Purpose::Chat]);
    }

    #[test]
    fn media_that_moves_more_than_a_handshake() {
        use Side::{Client, Upstream};
        let media = |moves: &[(Side, u64)]| counted(Some(Purpose::Media), moves);
        let most = u64::from(MEDIA);
        assert_eq!(media(&[(Client, 517), (Upstream, 5_000), (Client, 80)]), [], "the doctor");
        assert_eq!(media(&[(Client, most)]), []);
        assert_eq!(media(&[(Client, most + 1)]), [Purpose::Media]);
        assert_eq!(media(&[(Client, 1), (Upstream, most)]), [Purpose::Media], "both ways together");
        assert_eq!(media(&[(Upstream, u64::MAX), (Upstream, u64::MAX)]), [Purpose::Media]);
    }

    proptest! {
        #[test]
        fn a_flow_counts_once_at_most_and_bytes_alone_decide(
            moves in prop::collection::vec((any::<bool>(), 0..40_000_u64), 0..40)
        ) {
            let side = |client| if client { Side::Client } else { Side::Upstream };
            let moves: Vec<_> = moves.into_iter().map(|(client, bytes)| (side(client), bytes)).collect();
            prop_assert_eq!(counted(None, &moves), vec![]);
            let sum: u64 = moves.iter().map(|(_, bytes)| bytes).sum();
            let media = counted(Some(Purpose::Media), &moves);
            prop_assert_eq!(media.len(), usize::from(sum > u64::from(MEDIA)));
            // Who spoke, without those who said nothing and without repetitions.
            let mut spoke: Vec<_> = moves.iter().filter(|(_, bytes)| *bytes > 0).map(|(from, _)| *from).collect();
            spoke.dedup();
            let from_client = spoke.iter().skip_while(|from| **from != Side::Client).count();
            let chat = counted(Some(Purpose::Chat), &moves);
            prop_assert_eq!(chat.len(), usize::from(from_client >= 3));
        }
    }
}
