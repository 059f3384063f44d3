package model

import "time"

// The flows of a table add up to 10,000 requests; see the package comment.

// banking: everything over TLS. A look at a check is followed at once by the
// images of its two sides. Sessions that end elsewhere than at the logout are
// left to time out.
var banking = &Workload{
	Name: Banking, Good: 2 * time.Second, Tolerable: 4 * time.Second,
	ThinkMean: 10 * time.Second, ThinkMax: 150 * time.Second, ThinkShare: 0.6158,
	PaddingBytes: 16 << 10,
	Pages: overTLS(chain(2150, []pageSpec{
		{Page{Name: "login", NoThink: true, Images: 4, Queries: 2},
			"account_summary 1000, bill_pay 600, transfer 80, profile 60, order_check 40, end 370"},
		{Page{Name: "account_summary", Images: 4, Queries: 1},
			"check_detail 700, bill_pay 190, transfer 100, profile 40, order_check 50, logout 200, end 230"},
		{Page{Name: "check_detail", Images: 2, Queries: 1}, "check_front 845"},
		{Page{Name: "check_front", Type: "check_image", NoThink: true, Raw: true, Queries: 1}, "check_back 845"},
		{Page{Name: "check_back", Type: "check_image", NoThink: true, Raw: true, Queries: 1},
			"account_summary 300, check_detail 145, bill_pay 100, logout 100, end 200"},
		{Page{Name: "bill_pay", Images: 3, Queries: 1},
			"quick_pay 640, add_payee 100, bill_pay_status 180, logout 150, end 320"},
		{Page{Name: "quick_pay", Images: 3, Queries: 2},
			"bill_pay 300, account_summary 50, bill_pay_status 30, logout 110, end 180"},
		{Page{Name: "add_payee", Images: 3}, "post_payee 75, end 25"},
		{Page{Name: "post_payee", Images: 2, Queries: 1}, "bill_pay 60, quick_pay 15"},
		{Page{Name: "bill_pay_status", Images: 3, Queries: 1},
			"account_summary 60, bill_pay 80, quick_pay 15, logout 20, end 35"},
		{Page{Name: "profile", Images: 2, Queries: 1}, "change_profile 80, end 30"},
		{Page{Name: "change_profile", Images: 2, Queries: 1}, "account_summary 30, bill_pay 20, logout 10, end 20"},
		{Page{Name: "order_check", Images: 3, Queries: 1}, "place_check_order 80, end 30"},
		{Page{Name: "place_check_order", Images: 2, Queries: 1}, "account_summary 20, bill_pay 10, logout 10, end 40"},
		{Page{Name: "transfer", Images: 2, Queries: 1}, "post_transfer 150, logout 10, end 50"},
		{Page{Name: "post_transfer", Images: 2, Queries: 2},
			"account_summary 50, bill_pay 30, profile 10, order_check 20, transfer 30, logout 10"},
		{Page{Name: "logout", Images: 2}, "end 620"},
	})),
	Mix: map[string]float64{
		"login": .215, "account_summary": .151, "check_image": .169, "bill_pay": .139, "check_detail": .084,
		"quick_pay": .067, "logout": .062,
	},
}

// ecommerce: plain HTTP up to the cart, TLS from the login that begins the
// checkout.
var ecommerce = &Workload{
	Name: Ecommerce, Good: 3 * time.Second, Tolerable: 5 * time.Second,
	ThinkMean: 10 * time.Second, ThinkMax: 150 * time.Second, ThinkShare: 0.9194,
	PaddingBytes: 98 << 10,
	Pages: chain(806, []pageSpec{
		{Page{Name: "index", Images: 6, Queries: 1},
			"search 300, browse 700, product_line 110, cart 50, login 60, end 90"},
		{Page{Name: "search", Images: 5, Queries: 1},
			"search 120, product_detail 330, product_line 100, index 40, end 60"},
		{Page{Name: "browse", Images: 6, Queries: 1},
			"browse 150, product_line 740, search 80, index 110, end 100"},
		{Page{Name: "product_line", Images: 6, Queries: 1},
			"product_detail 420, customize1 150, search 100, browse 200, index 60, end 70"},
		{Page{Name: "product_detail", Images: 5, Queries: 1},
			"customize1 450, product_detail 50, search 50, browse 80, product_line 50, index 60, end 60"},
		{Page{Name: "customize1", Images: 4, Queries: 1}, "customize1 700, customize2 790, index 120, end 80"},
		{Page{Name: "customize2", Images: 4, Queries: 1}, "customize1 250, customize3 540, index 50, end 50"},
		{Page{Name: "customize3", Images: 4, Queries: 1}, "customize1 140, customize2 100, cart 380"},
		{Page{Name: "cart", Images: 4, Queries: 1}, "cart 100, browse 50, customize3 80, login 280, end 20"},
		{Page{Name: "login", TLS: true, Images: 3, Queries: 1}, "login 40, shipping 330, end 10"},
		{Page{Name: "shipping", TLS: true, Images: 3, Queries: 1}, "shipping 10, billing 330, end 20"},
		{Page{Name: "billing", TLS: true, Images: 3, Queries: 1}, "billing 10, shipping 20, confirm 250, end 60"},
		{Page{Name: "confirm", TLS: true, Images: 3, Queries: 2}, "index 64, end 186"},
	}),
	Mix: map[string]float64{
		"index": .131, "search": .065, "browse": .118, "product_line": .100, "product_detail": .080,
		"customize1": .169, "customize2": .089, "customize3": .062, "cart": .053, "login": .038,
		"shipping": .036, "billing": .034, "confirm": .025,
	},
}

// support: no TLS; large files.
var support = &Workload{
	Name: Support, Good: 3 * time.Second, Tolerable: 5 * time.Second,
	GoodRate: 99000, TolerableRate: 95000,
	ThinkMean: 5 * time.Second, ThinkMax: 75 * time.Second, ThinkShare: 0.9208,
	PaddingBytes: 64 << 10,
	Pages: chain(792, []pageSpec{
		{Page{Name: "home", Images: 5, Queries: 1}, "search 380, catalog 380, end 50"},
		{Page{Name: "search", Images: 3, Queries: 1}, "search 400, product 700, catalog 60, end 100"},
		{Page{Name: "catalog", Images: 4, Queries: 1}, "catalog 250, product 830, end 90"},
		{Page{Name: "product", Images: 4, Queries: 1},
			"product 500, file_catalog 1320, search 200, catalog 300, end 160"},
		{Page{Name: "file_catalog", Images: 3, Queries: 1},
			"file 1000, product 450, file_catalog 300, search 180, catalog 180, end 140"},
		{Page{Name: "file", Images: 3, Queries: 1}, "file 140, download 680, file_catalog 400, search 100, end 30"},
		{Page{Name: "download", Raw: true, Download: true}, "file 210, file_catalog 230, home 18, end 222"},
	}),
	Mix: map[string]float64{
		"home": .081, "search": .126, "catalog": .117, "product": .248, "file_catalog": .225, "file": .135, "download": .068,
	},
}

func overTLS(pages []Page) []Page {
	for i := range pages {
		pages[i].TLS = true
	}
	return pages
}
