//! The store: pool and read statements.

pub mod reads;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};

/// Postgres, as the rest of the program sees it. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
}

/// What went wrong between us and Postgres.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres, or the way there.
    #[error("postgres: {0}")]
    Postgres(#[from] tokio_postgres::Error),
    /// No connection could be had.
    #[error("pool: {0}")]
    Pool(#[from] deadpool_postgres::PoolError),
}

impl StoreError {
    /// Whether asking again later may help: no connection, statement timeout, server going down.
    pub fn is_unavailable(&self) -> bool {
        match self {
            StoreError::Pool(_) => true,
            StoreError::Postgres(e) => {
                e.is_closed()
                    || e.code().is_none_or(|c| {
                        *c == SqlState::QUERY_CANCELED
                            || c.code().starts_with("57P")
                            || c.code().starts_with("08")
                            || c.code().starts_with("53")
                    })
            }
        }
    }
}

impl Store {
    /// A store over the database this URL names.
    ///
    /// # Errors
    /// When the URL does not parse.
    pub async fn connect(url: &str) -> Result<Store, StoreError> {
        let mut config: Config = url.parse()?;
        config.options("-c search_path=ebbtide -c statement_timeout=5000");
        config.connect_timeout(std::time::Duration::from_secs(2));
        let manager = Manager::from_config(config, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let pool = Pool::builder(manager).max_size(4).build().expect("a pool without timeouts needs no runtime");
        Ok(Store { pool })
    }

    pub(crate) async fn reader(&self) -> Result<Object, StoreError> {
        Ok(self.pool.get().await?)
    }
}
