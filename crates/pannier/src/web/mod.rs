//! The status page: one self-contained document that uses only the API.

use axum::response::Html;

/// The page.
pub(crate) async fn page() -> Html<&'static str> {
    Html(include_str!("status.html"))
}
