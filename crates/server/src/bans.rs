//! Bans in force: what the register keeps, told to the broker at the start and after every change.

use broker::{Ban, BanTarget, BrokerHandle};
use fleet::{Fleet, FleetError};

use crate::clock::now_us;

/// Tells the broker all bans that the register has. Those whose time is over stay in the register, for
/// the operator to see, and are not told.
///
/// Two changes at once each tell the whole list as they find it, and the later one wins: `turn` makes
/// the later one the one that reads later.
pub struct Bans {
    fleet: Fleet,
    broker: BrokerHandle,
    turn: tokio::sync::Mutex<()>,
}

impl Bans {
    /// Of this register, for this broker.
    pub fn new(fleet: Fleet, broker: BrokerHandle) -> Self {
        Self {
            fleet,
            broker,
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Reads the register and tells the broker, which ends connections that fall under a ban.
    ///
    /// # Errors
    /// [`FleetError::Storage`]; then the broker keeps what it was told before.
    pub async fn enforce(&self) -> Result<(), FleetError> {
        let _turn = self.turn.lock().await;
        let kept = self.fleet.list_bans().await?;
        let now = now_us();
        let in_force = kept
            .into_iter()
            .filter(|ban| ban.until_us.is_none_or(|until| until > now));
        let bans = in_force.filter_map(|ban| match ban.target.parse::<BanTarget>() {
            Ok(target) => Some(Ban {
                target,
                reason: ban.reason,
                until_us: ban.until_us,
            }),
            // Of another version of this program.
            Err(error) => {
                tracing::error!(event = "ban.unreadable", target = ban.target, error = %error);
                None
            }
        });
        self.broker.set_bans(bans.collect());
        Ok(())
    }
}
